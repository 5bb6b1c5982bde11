"""Post-copy: freeze, dump all but the memory, run at the target; the memory follows, on demand and in the background.

CRIU's page server stays on the source with the frozen tasks, and its lazy-pages daemon at the target asks it. Between
the two is a page channel (agent/runtime/pages.py), carried by the agents' own TLS link: no port is opened, and a link
that breaks is made again while the container only waits for what it touches.
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from agent.base.errors import AgentError, CommandFailed, DumpFailed, StepFailed
from agent.base.shell import Shell
from agent.base.tasks import Failing, both, to_the_end, within
from agent.checkpoint import criu, proc, segments
from agent.doors.dump_gate import WRITTEN
from agent.doors.pages import PageChannel
from agent.strategy import FilesAgain, Memory
from agent.strategy.cold import Cold
from agent.strategy.dump import DUMPS, LOOK_SECONDS, Dump, first_of
from protocol.peer import ImageFile, SentPart

log = logging.getLogger("agent.pages")

LINK_AGAIN_SECONDS = 0.2
ENDED_SECONDS = 1.0
"""For the channel's end to say how CRIU has ended, once it has: runc comes between."""
LET_GO_SECONDS = 5.0
"""For CRIU to let go of the tasks, where the channel's end was killed and could not wait for that."""
GONE = "CRIU has ended while the container's memory was still to come"


class PostCopy(Cold):
    """See the module."""

    name = "postcopy"
    lazy = True

    def __init__(self) -> None:
        super().__init__()
        self._channel: PageChannel | None = None
        self._linked = asyncio.Event()
        self._started = asyncio.Event()
        self._criu: tuple[int, int | None] | None = None
        """Its process and when that was started, while this agent has seen it start."""

    def _end(self, shell: Shell, migration: str) -> PageChannel:
        if self._channel is None:
            self._channel = PageChannel(shell, _folder(migration))
        return self._channel

    async def copy_while_running(self, memory: Memory, again: FilesAgain) -> None:
        """The place for the images, CRIU at its gate, and the channel, linked: the freeze waits for the dump alone."""
        dump = self._dump_of(memory.shell, memory.migration)
        await dump.make_ready(memory.container_id, memory.resident_bytes, memory.options, criu.PAGE_SERVER_SOCKET)
        await self._open_channel(memory, dump)

    async def _open_channel(self, memory: Memory, dump: Dump, parent: str = "") -> None:
        channel = self._end(memory.shell, memory.migration)
        await channel.start(*dump.lazy_command(memory.container_id, parent), seconds=memory.ready_seconds)
        channel.begin()
        await dump.at_gate(self._failed(channel), "the source", memory.ready_seconds)
        self._criu = await asyncio.to_thread(_criu_of, memory.migration)
        await self._send_ahead(memory, dump)
        self._started.set()
        async with within(memory.ready_seconds, "linking the page channel"):
            await self._linked.wait()

    async def carry(self, memory: Memory) -> None:
        """Carry pages to the peer over one link after another, as long as there is a channel."""
        channel = self._end(memory.shell, memory.migration)
        if not channel.exists:
            await self._started.wait()
        figures = memory.progress.figures

        async def pace(size: int) -> None:
            await memory.progress.pace(size)
            memory.progress.sent(size)
            figures["pages_bytes"] = figures.get("pages_bytes", 0) + size

        failing = Failing(f"{memory.migration}: linking the page channel")
        while channel.exists:
            try:
                async with memory.peer.pages(memory.migration) as socket:
                    self._linked.set()
                    await channel.carry(socket, pace)
                log.info("%s: the page channel's link has ended", memory.migration)
            except (AgentError, OSError) as error:
                failing.because(error)
            await asyncio.sleep(LINK_AGAIN_SECONDS)

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[ImageFile, ...]]:
        images = self._dump_of(memory.shell, memory.migration).images
        finished = asyncio.Event()
        began = time.monotonic()
        stream = self._counted(memory.progress, segments.follow(images, finished))
        part, _ = await both(memory.peer.send_images(memory.migration, stream), self._serve(memory, finished))
        memory.progress.part_done(part.name, part.bytes, began, frozen=True)
        return part, self._described(images)

    async def _serve(self, memory: Memory, finished: asyncio.Event) -> None:
        """Dump; returns when all but the memory is there. CRIU waits for questions about that, from then on."""
        channel, began = self._end(memory.shell, memory.migration), time.monotonic()
        dump = self._dump_of(memory.shell, memory.migration)
        dump.begin()
        # like any dump, it is not cut off in the middle
        if failed := await to_the_end(first_of(dump.gate.heard(WRITTEN), self._failed(channel))):
            raise dump.failed(failed, "the source")
        memory.progress.figures["dump_ms"] = (time.monotonic() - began) * 1000
        finished.set()

    async def _failed(self, channel: PageChannel) -> CommandFailed:
        await channel.until_ended()
        return CommandFailed("the dump has ended before its memory was asked for", detail=channel.said)

    async def serves(self, migration: str) -> bool:
        """Whether the channel's end is there, and CRIU has not failed: after a reboot neither is, and no frozen copy.

        The kernel is asked, of both processes: what they would have said, and their files, come some time after a kill.
        """
        channel = self._channel or PageChannel(Shell(), _folder(migration))
        end = channel.pid
        if end is None or proc.is_ending(end):
            return False
        if self._criu is not None and _has_ended(*self._criu):  # it may have given all
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDED_SECONDS):
                    await channel.until_ended()
            return channel.code == 0
        return not channel.code

    async def fails_to_serve(self, migration: str) -> None:
        """The end of CRIU here is not passed on (agent/runtime/pages.py): a restore waits for its pages in vain."""
        if self._channel is not None:
            await self._channel.until_ended()
            if self._channel.code != 0:
                raise DumpFailed(GONE, detail=self._channel.said)

    async def stop_serving(self, shell: Shell, migration: str) -> None:
        """Hang up on CRIU's page server: it leaves the tasks frozen and whole, as after any dump."""
        self._dump_of(shell, migration).gate.shut()  # or CRIU would wait there, and the channel for CRIU
        await self._end(shell, migration).stop()
        end = time.monotonic() + LET_GO_SECONDS
        while left := proc.criu_in(DUMPS / migration):  # thawed now, the tasks would run into CRIU's parasite
            if time.monotonic() < end:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            raise StepFailed(f"CRIU does not let the tasks go: processes {left}")

    async def release(self, shell: Shell, migration: str) -> None:
        await self.stop_serving(shell, migration)
        await super().release(shell, migration)


def _folder(migration: str) -> Path:
    return DUMPS / migration / "pages"


def _criu_of(migration: str) -> tuple[int, int | None] | None:
    """The CRIU at the gate, which will serve; none where the first of the name can't be told from others."""
    found = proc.scripts_in(DUMPS / migration, "criu")
    return (found[0], proc.start_time(found[0])) if len(found) == 1 else None


def _has_ended(pid: int, started: int | None) -> bool:
    return proc.is_ending(pid) or proc.start_time(pid) != started
