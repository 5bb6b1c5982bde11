"""CRIU's dump of a container that is held, into a tmpfs: it stays frozen, and runs on when it is let go."""

import asyncio
import shutil
import time
from pathlib import Path

from agent.base.errors import CommandFailed, DumpFailed
from agent.base.shell import Shell
from agent.checkpoint import criu
from agent.checkpoint.criu import CriuOptions
from agent.checkpoint.diagnosis import dump_failed
from agent.doors.handover import mount_tmpfs, unmount

DUMPS = Path("/run/transship/dump")
ROOM_FACTOR = 1.25
ROOM = 64 << 20


class Dump:
    """One dump, in the folder where recovery looks for one that goes on without its agent."""

    def __init__(self, shell: Shell, migration: str) -> None:
        self._shell = shell
        self._migration = migration
        self._folder = DUMPS / migration

    @property
    def images(self) -> Path:
        return self._folder / "images"

    @property
    def work(self) -> Path:
        return self._folder / "work"

    async def make_ready(self, container_id: str, resident_bytes: int, options: CriuOptions, also: str = "") -> None:
        """The place for the images, so that the freeze waits for nothing but the dump; `also`: more options."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        DUMPS.chmod(0o700)
        self.work.mkdir(exist_ok=True, mode=0o700)
        await mount_tmpfs(self._shell, self.images, int(resident_bytes * ROOM_FACTOR) + ROOM)
        config = self._folder / "criu.conf"
        config.write_text(options.for_dump() + also)
        criu.make_shadow_root(container_id, config, self._folder / "root")

    async def take(self, container_id: str, seconds: float, host: str) -> float:
        """Dump the tasks; how many milliseconds it took. `host` is where an error says that the log is.

        Raises:
            DumpFailed: with CRIU's own error lines, and what is likely behind them. The tasks are frozen as before.

        """
        began = time.monotonic()
        command = criu.dump_command(self._folder / "root", self.images, self.work, container_id)
        try:
            # CRIU killed in the middle leaves its parasite in the tasks: whatever happens, its end is waited for. Not
            # by an agent that crashes: it goes on then, and recovery finds it by its folder.
            await self._shell.run(*command, label="dump", timeout=seconds, killable=False)
        except CommandFailed as error:
            raise self.failed(error, host) from error
        return (time.monotonic() - began) * 1000

    def lazy_command(self, container_id: str) -> tuple[str, ...]:
        """What dumps all but the memory and serves that, for a process that outlives this agent."""
        return criu.lazy_dump_command(self._folder / "root", self.images, self.work, container_id)

    def failed(self, error: CommandFailed, host: str) -> DumpFailed:
        """The error of a dump that did not come about; `host` is where it says that the log is."""
        return dump_failed(self.work / "dump.log", f"{self._migration}-dump.log", host, error)

    async def release(self) -> None:
        """Make sure that nothing of it is left."""
        await unmount(self._shell, self.images)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
