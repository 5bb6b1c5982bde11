"""This host as a story sees it: the doors, in one small frozen bundle. Made in daemon.py, faked in tests."""

from dataclasses import dataclass

from agent.base.config import Settings
from agent.base.errors import CommandFailed
from agent.base.shell import Shell
from agent.doors.docker import Docker
from agent.migration.journal import Journal
from protocol.status import Engine


@dataclass(frozen=True, slots=True)
class Host:
    """The doors of one host."""

    settings: Settings
    docker: Docker
    shell: Shell
    journal: Journal

    @property
    def name(self) -> str:
        return self.settings.host

    async def engine(self) -> Engine:
        """Docker and CRIU as they are now; either may have been upgraded under us."""
        engine = await self.docker.engine(self.settings.runtime)
        return engine.model_copy(update={"criu": await self._criu_version()})

    async def _criu_version(self) -> str:
        try:
            done = await self.shell.run("criu", "--version", label="criu", timeout=10)
        except CommandFailed:
            return ""
        first = done.stdout.splitlines()[0] if done.stdout else ""
        return first.removeprefix("Version:").strip()
