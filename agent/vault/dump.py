"""CRIU's dump of a container that is held, into a tmpfs: it stays frozen, and runs on when it is let go."""

import asyncio
import shutil
import time
from pathlib import Path

from agent.base.errors import CommandFailed
from agent.checkpoint import criu
from agent.checkpoint.criu import GHOST_LIMIT, CriuOptions
from agent.checkpoint.diagnosis import dump_failed
from agent.doors.handover import mount_tmpfs, unmount
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.strategy.cold import DUMPS, ROOM, ROOM_FACTOR


class Dump:
    """One dump, in the folder where recovery looks for one that goes on without its agent."""

    def __init__(self, host: Host, run: Run, subject: Subject) -> None:
        self._host = host
        self._run = run
        self._subject = subject
        self._folder = DUMPS / run.id

    @property
    def images(self) -> Path:
        return self._folder / "images"

    @property
    def work(self) -> Path:
        return self._folder / "work"

    async def make_ready(self) -> None:
        """The place for the images, so that the freeze waits for nothing but the dump."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        DUMPS.chmod(0o700)
        self.work.mkdir(exist_ok=True, mode=0o700)
        memory = self._subject.memory_bytes
        await mount_tmpfs(self._host.shell, self.images, int(memory * ROOM_FACTOR) + ROOM)
        options = CriuOptions(self._subject.offer.tcp, ghost_limit=GHOST_LIMIT + memory, watched=self._subject.watched)
        config = self._folder / "criu.conf"
        config.write_text(options.for_dump())
        criu.make_shadow_root(self._subject.id, config, self._folder / "root")

    async def take(self) -> None:
        """Dump the tasks.

        Raises:
            DumpFailed: with CRIU's own error lines, and what is likely behind them.

        """
        began = time.monotonic()
        command = criu.dump_command(self._folder / "root", self.images, self.work, self._subject.id)
        try:
            # CRIU killed in the middle leaves its parasite in the tasks: its end is waited for, whatever happens
            await self._host.shell.run(
                *command, label="dump", timeout=self._host.settings.deadlines.dump, killable=False
            )
        except CommandFailed as error:
            raise dump_failed(self.work / "dump.log", f"{self._run.id}-dump.log", self._host.name, error) from error
        self._run.figures["dump_ms"] = (time.monotonic() - began) * 1000

    async def release(self) -> None:
        """Make sure that nothing of it is left."""
        await unmount(self._host.shell, self.images)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
