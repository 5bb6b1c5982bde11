"""Pre-copy: memory goes over in rounds while the container runs; frozen, only what was written since the last one.

    round: pre-dump, streamed while it is written, and a pass over the files
    what is left, by the kernel's own marks -> convergence.py: another round, freeze, throttle, post-copy, or give up

The last dump waits at its gate before the freeze like any other, with the last round as its parent.
"""

import asyncio
import logging
import time

from agent.base.errors import NotConverging
from agent.base.shell import Shell
from agent.base.tasks import both
from agent.checkpoint import criu, dirty, freezer
from agent.checkpoint.throttle import Throttle, used_seconds
from agent.strategy import FilesAgain, Memory
from agent.strategy.cold import Cold
from agent.strategy.convergence import CRIU_RATE, FIXED_MS, Then, Verdict, memory_ms, verdict
from agent.strategy.dump import DUMPS
from agent.strategy.postcopy import PostCopy
from agent.strategy.predump import PreDumps
from protocol.peer import ImageFile, SentPart
from protocol.status import Round

log = logging.getLogger("agent.source")

ENOUGH_BYTES = 4 << 20
"""Less than that says little about a rate."""


class PreCopy(PostCopy):
    """See the module. It becomes post-copy where what is left is to follow."""

    name = "precopy"

    def __init__(self) -> None:
        super().__init__()
        self.lazy = False
        self._predumps: PreDumps | None = None
        self._done: list[Round] = []
        self._rate = 0.0
        """Bytes a second, as measured."""
        self._processors = 1.0
        """That it uses when it is not throttled."""

    async def copy_while_running(self, memory: Memory, again: FilesAgain) -> None:
        dump = self._dump_of(memory.shell, memory.migration)
        await dump.make_ready(memory.container_id, memory.resident_bytes, memory.options)
        self._predumps = PreDumps(dump)
        self._predumps.make_ready(memory)
        found = await self._rounds(memory, again, self._predumps)
        log.info("%s: after %d rounds: %s, %s", memory.migration, len(self._done), found.then, found.why)
        memory.progress.reason += f"; after {len(self._done)} rounds: {found.then}, {found.why}"
        if found.then is Then.GIVE_UP:
            raise self._given_up(memory, found)
        self.lazy = found.then is Then.POSTCOPY
        if self.lazy:
            # a dump that leaves it behind is no longer for it: what the blackout shows then is what is fixed
            memory.progress.figures["by_memory"] = 0.0
            dump.write_options(memory.options, criu.PAGE_SERVER_SOCKET)
            await memory.peer.follow(memory.migration)
            await self._open_channel(memory, dump, self._predumps.last)
        else:
            await dump.start(memory.container_id, "the source", self._predumps.last)
            await self._send_ahead(memory, dump)

    async def _rounds(self, memory: Memory, again: FilesAgain, predumps: PreDumps) -> Verdict:
        """Rounds until they have come to an end; what that is."""
        found = Verdict(Then.ROUND)
        while found.then in (Then.ROUND, Then.THROTTLE):
            self._done.append(done := await self._round(memory, again, predumps, found.throttle))
            await memory.progress.round_done(done)
            found = verdict(self._done, memory.resident_bytes, memory.wishes)
        return found

    @property
    def sent(self) -> tuple[SentPart, ...]:
        return tuple(self._predumps.parts) if self._predumps is not None else ()

    async def _round(self, memory: Memory, again: FilesAgain, predumps: PreDumps, throttle: int) -> Round:
        began, used = time.monotonic(), used_seconds(memory.pid)

        def let_go() -> None:
            if throttle:
                self._throttled(memory).limit(memory.pid, self._processors * (1 - throttle / 100))

        self._throttled(memory).pause()
        held_ms, file_bytes = await both(predumps.round(memory, let_go), again())
        seconds, sent = time.monotonic() - began, predumps.parts[-1].bytes
        if not throttle:
            self._processors = (used_seconds(memory.pid) - used) / seconds
        if sent >= ENOUGH_BYTES and not memory.progress.paced:
            self._rate = sent / seconds
        figures = memory.progress.figures
        rate = self._rate or figures.get("link_rate", CRIU_RATE)
        total, left = await asyncio.to_thread(dirty.look, memory.pid, freezer.cgroup_of(memory.pid).tasks())
        if total > predumps.room:
            raise NotConverging(
                f"it has grown to {total >> 20} MiB meanwhile, beyond the room that is kept for its images",
                hint="move it again, or by post-copy, which keeps no images of it: --strategy postcopy",
            )
        figures["by_memory"] = memory_ms(left + file_bytes, rate, total, held_ms)
        return Round(
            number=len(self._done) + 1,
            bytes=sent,
            file_bytes=file_bytes,
            ms=round(seconds * 1000, 1),
            frozen_ms=round(max(held_ms, predumps.still_ms), 1),
            left_bytes=left,
            rate=round(rate, 1),
            predicted_ms=round(figures.get("fixed_ms", FIXED_MS) + figures["by_memory"], 1),
            throttled=throttle,
        )

    def _given_up(self, memory: Memory, found: Verdict) -> NotConverging:
        last, wishes = self._done[-1], memory.wishes
        allowed = "" if wishes.throttle else ", let it be slowed down meanwhile (--throttle PERCENT)"
        allowed += "" if wishes.postcopy else ", or post-copy with its risk (--allow-postcopy)"
        return NotConverging(
            f"a blackout of at most {wishes.max_blackout_ms} ms can't be kept to: after {last.number} rounds "
            f"{last.left_bytes >> 20} MiB are left, {last.predicted_ms:.0f} ms predicted; {found.why}",
            hint=f"allow a longer one{allowed}",
        )

    def _throttled(self, memory: Memory) -> Throttle:
        return Throttle(DUMPS / memory.migration)

    # --- the container is frozen ---

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[ImageFile, ...]]:
        self._throttled(memory).take_back()  # CRIU works in the tasks, on their time
        return await (PostCopy if self.lazy else Cold).dump_and_send(self, memory)

    async def stop_serving(self, shell: Shell, migration: str) -> None:
        """As the one that it has become; a restarted agent sees that by the channel."""
        await Cold.stop_serving(self, shell, migration)
        if self._end(shell, migration).exists:
            await PostCopy.stop_serving(self, shell, migration)

    async def release(self, shell: Shell, migration: str) -> None:
        Throttle(DUMPS / migration).take_back()
        if self._predumps is not None:
            await self._predumps.over()
        await super().release(shell, migration)
