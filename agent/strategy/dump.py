"""CRIU's dump of a container that is held, into a tmpfs: it stays frozen, and runs on when it is let go.

runc and CRIU are started before the freeze (`start`) and wait at a gate; what of them the blackout sees is CRIU's work
on the tasks, up to the last image (`images_written`).
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from agent.base.errors import CommandFailed, DumpFailed, StepFailed, StepTimeout
from agent.base.shell import Done, Shell
from agent.base.tasks import to_the_end
from agent.checkpoint import criu, grace, proc
from agent.checkpoint.contents import Contents
from agent.checkpoint.criu import CriuOptions
from agent.checkpoint.diagnosis import dump_failed
from agent.doors import tmpfs
from agent.doors.dump_gate import NAME as GATE
from agent.doors.dump_gate import WAITING, WRITTEN, DumpGate

DUMPS = Path("/run/transship/dump")
ROOM_FACTOR = 1.25
ROOM = 64 << 20
START_SECONDS = 20.0
"""For runc and CRIU to come to the gate; it takes 50 ms on an idle machine."""
TURNED_AWAY_SECONDS = 20.0
"""For those that wait at the gate to end when it is shut."""
LOOK_SECONDS = 0.02


class Dump:
    """One dump, in the folder where recovery looks for one that goes on without its agent."""

    def __init__(self, shell: Shell, migration: str) -> None:
        self._shell = shell
        self._migration = migration
        self._folder = DUMPS / migration
        self.gate = DumpGate(self._folder / "gate")
        self._contents = Contents(self._folder)
        self._packing: asyncio.Task[None] | None = None
        self._event = -1
        self._command: asyncio.Task[Done] | None = None

    @property
    def folder(self) -> Path:
        """Of all of it; also of what a strategy has beside the dump."""
        return self._folder

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
        await tmpfs.mount(self._shell, self.images, room_for(resident_bytes))
        self.gate.lay_out()
        self.write_options(options, also)
        pid = criu.make_shadow_root(container_id, self._config, self._folder / "root")
        self._contents.lay_out(self.images)
        await asyncio.to_thread(self._contents.look, pid)
        self._event = self._event if self._event >= 0 else await asyncio.to_thread(grace.event)

    @property
    def _config(self) -> Path:
        return self._folder / "criu.conf"

    def write_options(self, options: CriuOptions, also: str = "") -> None:
        """CRIU's, as it will read them when it is started."""
        self._config.write_text(options.for_dump() + also + f"action-script {self.gate.script}\n")

    async def start(self, container_id: str, host: str, parent: str = "") -> None:
        """Start runc and CRIU, up to the gate: the container is not touched. `host` is where an error has its log.

        With a `parent`, a folder among the images, only what was written since goes into them.

        Raises:
            DumpFailed: they don't come so far.

        """
        command = criu.dump_command(self._folder / "root", self.images, self.work, container_id, parent)
        command = criu.with_path(self._contents.path, command)
        # CRIU killed in the middle leaves its parasite in the tasks: whatever happens, its end is waited for. Not
        # by an agent that crashes: it goes on then, and recovery finds it by its folder.
        running = await self._shell.start(*command, label="dump")
        self._command = asyncio.create_task(running.wait(), name="wait for the dump")
        await self.at_gate(self._ended(), host)

    async def at_gate(
        self, ended: Coroutine[Any, Any, CommandFailed | None], host: str, seconds: float = START_SECONDS
    ) -> None:
        """Wait until CRIU is at the gate, whoever has started it; `ended` returns when that has ended.

        Raises:
            DumpFailed: it has ended before, or does not come.

        """
        try:
            async with asyncio.timeout(seconds):
                failed = await first_of(self.gate.heard(WAITING), ended)
        except TimeoutError:
            failed = CommandFailed("runc and CRIU have not come so far that they could dump")
        if failed is not None:
            raise self.failed(failed, host)

    def begin(self) -> None:
        """The tasks are frozen: let CRIU dump them, and pack what it would have packed by programs, beside it."""
        self.gate.open()
        self._packing = asyncio.create_task(asyncio.to_thread(self._contents.pack), name="pack what is in a tmpfs")

    async def images_written(self, seconds: float, host: str) -> float:
        """Dump the tasks, which are frozen: milliseconds until the last image was there. `over` waits for the rest.

        Raises:
            DumpFailed: with CRIU's own error lines, and what is likely behind them. The tasks are frozen as before.
            StepTimeout: it took longer than `seconds`; CRIU has ended since.

        """
        began = time.monotonic()
        self.begin()
        try:
            async with asyncio.timeout(seconds):
                failed = await first_of(self.gate.heard(WRITTEN), self._ended())
        except TimeoutError:
            await self.over()
            raise StepTimeout(f"dump took longer than {seconds:g} s") from None
        except asyncio.CancelledError:
            await self.over()
            raise
        if failed is not None:
            raise self.failed(failed, host) from failed
        return (time.monotonic() - began) * 1000

    async def take(self, seconds: float, host: str) -> float:
        """As `images_written`; and CRIU has let go of the tasks, so that they may be thawed.

        Raises:
            DumpFailed: also where CRIU has failed at that.

        """
        took = await self.images_written(seconds, host)
        if failed := await to_the_end(self._ended()):
            raise self.failed(failed, host) from failed
        return took

    async def over(self) -> None:
        """Wait for the end of runc and CRIU, however that is: tasks that are thawed before run into CRIU's parasite."""
        await to_the_end(self._ended())

    async def _ended(self) -> CommandFailed | None:
        if self._command is not None:
            await asyncio.wait({self._command})
            with contextlib.suppress(asyncio.CancelledError):
                error = self._command.exception()
                return error if isinstance(error, CommandFailed) else None
        return None

    async def turn_away(self) -> None:
        """Make sure that nothing waits at the gate, whoever has started it. What has passed it goes on to its end.

        Raises:
            StepFailed: it does not end.

        """
        self.gate.shut()
        await self.over()
        end = time.monotonic() + TURNED_AWAY_SECONDS
        while left := proc.scripts_in(self._folder, GATE):
            if time.monotonic() > end:
                raise StepFailed(f"CRIU does not turn back from before the dump: processes {left}")
            await asyncio.sleep(LOOK_SECONDS)

    def lazy_command(self, container_id: str, parent: str = "") -> tuple[str, ...]:
        """What dumps all but the memory and serves that, for a process that outlives this agent."""
        command = criu.lazy_dump_command(self._folder / "root", self.images, self.work, container_id, parent)
        return criu.with_path(self._contents.path, command)

    def failed(self, error: CommandFailed, host: str) -> DumpFailed:
        """The error of a dump that did not come about; `host` is where it says that the log is."""
        return dump_failed(self.work / "dump.log", f"{self._migration}-dump.log", host, error)

    async def release(self) -> None:
        """Make sure that nothing of it is left."""
        await self.turn_away()
        self.gate.close()
        if self._packing is not None:
            await asyncio.wait({self._packing})
        self._contents.close()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1
        await tmpfs.unmount(self._shell, self.images)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def room_for(resident_bytes: int) -> int:
    """Bytes of tmpfs for the images of a container of so much memory."""
    return int(resident_bytes * ROOM_FACTOR) + ROOM


async def first_of(
    said: Coroutine[Any, Any, None], ended: Coroutine[Any, Any, CommandFailed | None]
) -> CommandFailed | None:
    """Wait for a word of CRIU's or for its end; how that failed, if it did without the word."""
    word, end = asyncio.create_task(said), asyncio.create_task(ended)
    try:
        await asyncio.wait({word, end}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # what it said last is heard before its end is
        return end.result() if end.done() and not word.done() else None
    finally:
        word.cancel()
        end.cancel()
