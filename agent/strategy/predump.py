"""Rounds of pre-copy at the source: CRIU's pre-dump of the running container, streamed while it is written.

CRIU holds the tasks for a moment, takes their memory into pipes, lets them go and writes the pipes out. A round has in
it what was written since the one before; of that CRIU needs the pagemaps only, which stay when the pages are sent.
A container in which somebody sleeps is frozen from before that until CRIU has let go: its calls are mended then, as
after a dump (agent/checkpoint/resume.py). That takes as long as runc and CRIU need to start.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from agent.base.errors import CommandFailed, FreezeFailed, StepTimeout
from agent.base.shell import Done
from agent.base.tasks import both, to_the_end
from agent.checkpoint import criu, freezer, proc, resume, segments
from agent.checkpoint.diagnosis import dump_failed
from agent.strategy import Memory
from agent.strategy.dump import Dump, room_for
from protocol.peer import SentPart

LOOK_SECONDS = 0.005
FREEZE_SECONDS = 1.0
"""A round is no blackout: what does not freeze soon is left alone."""


class PreDumps:
    """Of one move, in the folder of its dump."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._command: asyncio.Task[Done] | None = None
        self._room = 0
        self.parts: list[SentPart] = []
        """What was sent, one a round."""
        self.still_ms = 0.0
        """For how long the last round had it frozen for the sake of its calls."""

    @property
    def last(self) -> str:
        """The folder of the last round among the images; empty before there is one."""
        return criu.round_name(len(self.parts)) if self.parts else ""

    @property
    def room(self) -> int:
        """Bytes of images that there is room for, here and there."""
        return self._room

    def make_ready(self, memory: Memory) -> None:
        """Options of their own: no gate holds a round."""
        self._room = room_for(memory.resident_bytes)
        config = self._dump.folder / "rounds.conf"
        config.write_text(memory.options.for_dump())
        criu.make_shadow_root(memory.container_id, config, self._root)

    @property
    def _root(self) -> Path:
        return self._dump.folder / "rounds"

    async def round(self, memory: Memory, let_go: Callable[[], None]) -> float:
        """Send what was written since the last one; for how many milliseconds it was held. `let_go`: it is no more.

        Raises:
            DumpFailed: CRIU could not.
            StepTimeout: it did not end in time.
            TransferFailed, CorruptPart: the link broke, or the peer found something wrong.

        """
        number = len(self.parts) + 1
        name = criu.round_name(number)
        images, work = self._dump.images / name, self._dump.work / name
        for folder in (images, work):
            folder.mkdir(mode=0o700)
        parent = f"../{self.last}" if self.last else ""
        command = criu.pre_dump_command(self._root, images, work, memory.container_id, parent)
        finished, began = asyncio.Event(), time.monotonic()
        stream = self._paced(memory, f"images:{number}", segments.follow(images, finished))
        async with self._kept_still(memory) as thaw:
            await to_the_end(self._start(memory, command))  # or a cancel would leave one that nobody waits for
            part, _ = await both(
                memory.peer.send_round(memory.migration, number, stream),
                self._written(memory, images, work, finished, thaw, let_go),
            )
        self.parts.append(part)
        memory.progress.part_done(part.name, part.bytes, began, frozen=False)
        return criu.held_ms(work)

    @asynccontextmanager
    async def _kept_still(self, memory: Memory) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Frozen, where CRIU would end somebody's sleep, until what is given is called, or a failed round is over."""
        group, self.still_ms = freezer.cgroup_of(memory.pid), 0.0
        if group.is_frozen() or not await asyncio.to_thread(resume.waits, group):
            yield _nothing
            return
        began = time.monotonic()

        async def leave() -> None:
            if not self.still_ms:
                await self._let_go(group)
                self.still_ms = (time.monotonic() - began) * 1000

        try:
            try:
                await freezer.freeze(group, FREEZE_SECONDS)
            except FreezeFailed:  # so its sleep ends
                await leave()
            yield leave
        finally:
            await to_the_end(leave())

    async def _let_go(self, group: freezer.Cgroup) -> None:
        """Thaw it once CRIU has left its tasks: before, they would run into its parasite, or be frozen by it again."""
        while not self._is_over() and any(task.tracer for task in proc.tasks(group.tasks())):
            await asyncio.sleep(LOOK_SECONDS)
        await resume.thaw(group)

    def _is_over(self) -> bool:
        return self._command is None or self._command.done()

    async def _start(self, memory: Memory, command: tuple[str, ...]) -> None:
        running = await memory.shell.start(*command, label="pre-dump")
        # as with a dump: killed in the middle it would leave its parasite in the tasks
        self._command = asyncio.create_task(running.wait(), name="wait for a pre-dump")

    async def _written(
        self,
        memory: Memory,
        images: Path,
        work: Path,
        finished: asyncio.Event,
        thaw: Callable[[], Awaitable[None]],
        let_go: Callable[[], None],
    ) -> None:
        assert self._command is not None
        try:
            async with asyncio.timeout(memory.dump_seconds):
                # it makes the images of pages when the tasks run again (criu/cr-dump.c: cr_pre_dump_finish)
                while not self._command.done() and not any(images.glob("pages-*")):
                    await asyncio.sleep(LOOK_SECONDS)
                await thaw()
                let_go()
                await asyncio.wait({self._command})
        except TimeoutError:
            raise StepTimeout(f"a round took longer than {memory.dump_seconds:g} s") from None
        if isinstance(error := self._command.exception(), CommandFailed):
            raise dump_failed(work / "dump.log", f"{memory.migration}-{images.name}.log", "the source", error)
        finished.set()

    async def _paced(self, memory: Memory, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        memory.progress.sending(name)
        async for chunk in chunks:
            await memory.progress.pace(len(chunk), compressed=True)
            yield chunk
            memory.progress.sent(len(chunk))

    async def over(self) -> None:
        """Wait for the end of runc and CRIU, however that is."""
        if self._command is not None:
            await to_the_end(_ended(self._command))


async def _ended(command: asyncio.Task[Done]) -> None:
    await asyncio.wait({command})
    if not command.cancelled():
        command.exception()  # read: it was told, or there is nobody to tell


async def _nothing() -> None:
    """It was not frozen."""
