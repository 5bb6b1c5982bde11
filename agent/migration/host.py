"""This host as a story sees it: the doors, in one small frozen bundle. Made in daemon.py, faked in tests."""

import asyncio
from dataclasses import dataclass, field

from agent.base.config import Settings
from agent.base.errors import CommandFailed
from agent.base.pace import Pace
from agent.base.shell import Shell
from agent.doors.docker import Docker
from agent.migration.journal import Journal
from protocol.status import Engine

FEATURES = ("mem_dirty_track", "uffd-noncoop")
"""What strategies ask for, as `criu check --feature` calls it: to know what was written since, and lazy pages."""


@dataclass(frozen=True, slots=True)
class Host:
    """The doors of one host."""

    settings: Settings
    docker: Docker
    shell: Shell
    journal: Journal
    pace: Pace = field(default_factory=Pace)
    """What all migrations that leave keep to together, while their containers run."""
    _features: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    """By CRIU's version: the kernel stays what it is while we run."""

    @property
    def name(self) -> str:
        return self.settings.host

    async def engine(self) -> Engine:
        """Docker and CRIU as they are now; either may have been upgraded under us."""
        engine = await self.docker.engine(self.settings.runtime)
        version = await self.criu_version()
        if version and version not in self._features:
            found = await asyncio.gather(*map(self._has_feature, FEATURES))
            self._features[version] = tuple(name for name, there in zip(FEATURES, found, strict=True) if there)
        return engine.model_copy(update={"criu": version, "criu_features": self._features.get(version, ())})

    async def _has_feature(self, name: str) -> bool:
        """Ask CRIU, which asks the kernel; version numbers say nothing about how a kernel was built."""
        try:
            await self.shell.run("criu", "check", "--feature", name, label="criu", timeout=10)
        except CommandFailed:
            return False
        return True

    async def criu_version(self) -> str:
        try:
            done = await self.shell.run("criu", "--version", label="criu", timeout=10)
        except CommandFailed:
            return ""
        first = done.stdout.splitlines()[0] if done.stdout else ""
        return first.removeprefix("Version:").strip()
