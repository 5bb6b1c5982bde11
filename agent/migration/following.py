"""The memory that follows a container to this host when it runs already (post-copy), as its target sees it; rule 7.

Whether all of it is here is noted in the journal: what knows it otherwise, the page channel, is gone after a reboot. A
copy whose memory can't come any more is held at once, since it would take for zeros what it had in the missing pages.
"""

import asyncio
import contextlib
import logging
import time

from agent.base.errors import Cancelled, ContainerGone, FreezeFailed, RestoreFailed
from agent.checkpoint import freezer, logs, proc
from agent.checkpoint.criu import lazy_pages_command
from agent.checkpoint.freezer import Cgroup
from agent.doors.handover import HandOver
from agent.doors.pages import PageChannel, WebSocket
from agent.migration.host import Host
from agent.migration.run import Run
from protocol.peer import Arrival, Arrived

log = logging.getLogger("agent.target")

ARRIVED_SECONDS = 5.0
"""A source that asks for the last page is answered at least this often."""
HUNG_UP_SECONDS = 5.0
"""For CRIU's daemon to end by itself, when the source has said that no more comes."""
FREEZE_SECONDS = 10.0
WAIT_SECONDS = 1.0


class Following:
    """Of a move whose memory comes before it runs (not `lazy`) all of it is here, always."""

    def __init__(self, host: Host, run: Run, hand_over: HandOver, *, lazy: bool) -> None:
        self._host = host
        self._run = run
        self._hand_over = hand_over
        self._lazy = lazy
        self._channel = PageChannel(host.shell, hand_over.path / "pages")
        self._hung_up_at: float | None = None
        self._going = asyncio.Event()
        self._going.set()

    # --- before it runs ---

    async def expect(self) -> None:
        """Have this end of the page channel, and CRIU's daemon where it needs the images, before the freeze."""
        if self._lazy:
            command = lazy_pages_command(self._hand_over.lazy, self._hand_over.work)
            await self._channel.start(*command, seconds=self._host.settings.deadlines.stage)
            self._hand_over.hold_back_from_lazy()
            self._channel.begin()

    async def ask(self, given_up: asyncio.Event) -> None:
        """CRIU's daemon has to listen before the restore: each task gives it its page faults.

        Raises:
            RestoreFailed: it does not come up, or not within the deadline of the restore.
            Cancelled: the source has taken it back meanwhile.

        """
        if not self._lazy:
            return
        self._hand_over.give_to_lazy()
        listening = asyncio.create_task(self._channel.until_ready(), name="wait for CRIU's daemon")
        giving_up = asyncio.create_task(given_up.wait(), name="give up")
        try:
            seconds = self._host.settings.deadlines.prepare
            await asyncio.wait({listening, giving_up}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and listening.result():
                return
        finally:
            listening.cancel()
            giving_up.cancel()
        if given_up.is_set():
            raise Cancelled(f"the source has taken the migration of {self._run.container} back")
        failed = "has failed" if listening.done() else f"does not come up within {seconds:g} s"
        raise RestoreFailed(f"CRIU's lazy-pages daemon {failed}", detail=(*self._digest(), *self._channel.said))

    async def guard(self, group: Cgroup) -> None:
        """Have the tasks held by whom that daemon is a child of, if it fails; also while there is no agent here."""
        if self._lazy and await self._channel.connect():
            self._channel.guard(*freezer.freezing(group))

    def wait_with_the_rest(self) -> None:
        """From the restore to `go_on` no memory comes: nobody can ask for any, and it would be in the way."""
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    async def carry(self, socket: WebSocket) -> None:
        """Carry the source's link to this end of the channel, until either breaks."""
        await self._channel.carry(socket, taking=self._turn)

    async def _turn(self) -> None:
        """Wait for `go_on`; a decision that does not come for long must not look like a broken link."""
        if not self._going.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._going.wait()

    # --- when it runs ---

    async def state(self) -> Arrival:
        """How far it is."""
        if not self._lazy or self._run.record.get("whole"):
            return Arrival.WHOLE
        if self._run.record.get("lost"):
            return Arrival.LOST
        up = await self._channel.connect()
        if self._channel.code == 0:
            return Arrival.WHOLE
        return Arrival.COMING if up and self._channel.code is None and not self._is_late() else Arrival.LOST

    async def look(self) -> Arrival:
        """The same, and noted down once that can't change any more."""
        state = await self.state()
        known = not self._lazy or self._run.record.get("whole") or self._run.record.get("lost")
        if state is Arrival.WHOLE and not known:
            await self._run.note_down(whole=True)
        elif state is Arrival.LOST and not known:
            await self.hold()
            logs.keep(self._hand_over.work / "lazy-pages.log", f"{self._run.id}-lazy-pages.log")
            await self._run.note_down(lost=True)
            log.error("%s: the memory of %s did not get across whole", self._run.id, self._run.container)
        return state

    def _is_late(self) -> bool:
        """The source has hung up, and whoever asks it has not ended of that: its questions will not be answered."""
        if not self._channel.hung_up:
            return False
        self._hung_up_at = self._hung_up_at or time.monotonic()
        return time.monotonic() - self._hung_up_at > HUNG_UP_SECONDS

    async def arrived(self) -> Arrived:
        """For the source: whether the last page is here; waits a while for it."""
        state = await self.look()
        if state is Arrival.COMING:
            await self._channel.until_news(ARRIVED_SECONDS)
            state = await self.look()
        return Arrived(state=state, detail=self._digest() if state is Arrival.LOST else ())

    def _digest(self) -> tuple[str, ...]:
        return logs.digest(self._hand_over.work / "lazy-pages.log")

    def _group(self) -> Cgroup | None:
        """Of the copy's tasks, if they are those that were restored here."""
        pid = int(self._run.record.get("pid", 0))
        if not pid or proc.start_time(pid) != self._run.record.get("pid_start"):
            return None
        try:
            return freezer.cgroup_of(pid)
        except ContainerGone:
            return None

    async def hold(self) -> None:
        """Make sure that the copy does not run."""
        if (group := self._group()) is not None:
            try:
                await freezer.freeze(group, FREEZE_SECONDS)
            except FreezeFailed as error:  # one waits for a page in the kernel; it gets no further than that
                log.warning("%s: %s", self._run.id, error)

    async def give_up(self, *, asked: bool) -> bool:
        """End what can't go on, where somebody has said so, now or once before; whether they have."""
        if asked:
            await self._run.note_down(given_up=True)
        if self._run.record.get("given_up"):
            await self.end()
        return bool(self._run.record.get("given_up"))

    async def end(self) -> None:
        """End what can't go on, before its missing pages are read as zeros."""
        if (group := self._group()) is not None:
            await self.hold()
            await self.stop()  # first: its end has the tasks held once more, and nobody would thaw what is dead by then
            await freezer.kill_frozen(group)

    async def stop(self) -> None:
        """Make sure that nothing waits for pages here."""
        if self._lazy:
            await self._channel.stop(kill=True)
