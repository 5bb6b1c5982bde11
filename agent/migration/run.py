"""One migration under way, seen from one side: its id and phase, its clock, what the journal and the report get."""

import logging
import resource
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from agent.base.pace import Pace
from agent.base.tasks import to_the_end, until_it_works
from agent.doors.compression import Compressed
from agent.migration import machine
from agent.migration.compression import Chosen
from agent.migration.journal import Entry, Journal
from agent.migration.machine import Role
from protocol.errors import ErrorInfo
from protocol.status import Part, Phase, PhaseTime, Round

log = logging.getLogger("agent.migration")

PACED = (Phase.RESERVED, Phase.COPYING, Phase.RUNNING)
"""In the blackout nothing keeps to a rate: each second of it is one that the container stands still."""
JOURNAL_PAUSE_SECONDS = 1.0
RATE_SECONDS = 1.0
"""The window over which the rate of a transfer is taken."""


class Run:
    """Phases only move by `enter`, which writes them to the journal before anybody relies on them."""

    def __init__(
        self,
        journal: Journal,
        entry: Entry,
        *,
        changed: Callable[["Run"], Awaitable[None]] | None = None,
        together: Pace | None = None,
    ) -> None:
        self._journal = journal
        self._entry = entry
        self._changed = changed
        self._together = together or Pace()
        """What all migrations of this host keep to."""
        self.bandwidth = Pace(entry.record.get("bandwidth"))
        self._began = time.monotonic()
        self._cpu_began = _cpu_seconds()
        self._marks: list[tuple[float, int]] = []
        self.phases: list[PhaseTime] = [PhaseTime(phase=entry.phase, at_ms=0)]
        self.parts: list[Part] = []
        self.rounds: list[Round] = []
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}
        """Milliseconds by name (freeze_ms, dump_ms, restore_ms, blackout_ms); `frozen_at` on the monotonic clock."""
        self.target_phases: tuple[PhaseTime, ...] = ()
        self.undo_failed: list[str] = []
        self.doubt: ErrorInfo | None = None
        """Decided, and the target has not confirmed: its last answer."""
        self.failure: ErrorInfo | None = None
        """Why it was not to be."""
        self.deciding = False
        """From just before the decision on; not any more where it could not be written."""
        self.stopped = bool(entry.record.get("stopped"))
        """Somebody has ended the container on purpose meanwhile; then nobody else starts it again."""
        self.unheard = False
        """It has ended, and dockerd is told so by a signal that nobody gets; that is no such wish."""
        self.strategy = ""
        self.may_follow = False
        """Whether memory may follow when it runs, by its request and by its target."""
        self.reason = ""
        self.compression = Chosen()
        self.compressed = Compressed()
        """What the peer link has compressed so far."""
        self.part = ""
        self.bytes_sent = 0
        self.bytes_total: int | None = None
        """As far as is known by now; never fewer than were sent, and than what is known to follow."""
        self._follows = 0

    @staticmethod
    def entry(migration: str, role: Role, container: str, peer: str, record: dict[str, Any]) -> Entry:
        """A journal entry for a new migration in its role's first phase; not yet written."""
        now = datetime.now(UTC).isoformat()
        return Entry(migration, role, machine.FIRST[role], container, peer, now, now, record)

    async def record_beginning(self) -> None:
        """Write the first phase to the journal."""
        await self._journal.put(self._entry)
        await self.publish()

    @property
    def id(self) -> str:
        return self._entry.id

    @property
    def role(self) -> Role:
        return self._entry.role

    @property
    def phase(self) -> Phase:
        return self._entry.phase

    @property
    def peer(self) -> str:
        return self._entry.peer

    @property
    def container(self) -> str:
        return self._entry.container

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self._entry.started)

    @property
    def record(self) -> dict[str, Any]:
        return self._entry.record

    def elapsed_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000

    def cpu_seconds(self) -> float:
        """Of this agent and the commands that have ended, since the run began; what else it did meanwhile is in it."""
        return _cpu_seconds() - self._cpu_began

    async def enter(self, phase: Phase, *, resolved: bool = False, **record: Any) -> None:
        """Move to a phase, `resolved`: by a person's word; durable when this returns, or with the next.

        Raises:
            IllegalMove: the table has no such move; nothing has changed.

        """
        machine.move(self.role, self.phase, phase, resolved=resolved)
        await self._put(phase, {**record, "resolved": True} if resolved else record)
        self.phases.append(PhaseTime(phase=phase, at_ms=round(self.elapsed_ms(), 3)))
        log.info("%s %s as %s", self.id, phase, self.role)
        await self.publish()

    async def decide(self) -> None:
        """Enter COMMITTED. When this raises, the journal does not say so, now or after a crash.

        A write that failed may still have reached the disk; so it is overwritten before anything is taken back.
        """
        try:
            await self.enter(Phase.COMMITTED)
        except Exception:
            mending = f"{self.id}: writing that it is not decided"
            await until_it_works(mending, lambda: self._put(self.phase, {}), JOURNAL_PAUSE_SECONDS)
            self.deciding = False
            raise

    @property
    def how_gone(self) -> str:
        """Of a decided copy that is not there. Where its host went just as it was let go nobody knows more."""
        return "its copy is gone" + (
            ", and may have run for a moment" if self.record.get("may_have_run") else " before it ran"
        )

    async def note_down(self, **record: Any) -> None:
        """Add to the record what an undo after a crash will need; durable when this returns."""
        await self._put(self.phase, record)

    async def _put(self, phase: Phase, record: dict[str, Any]) -> None:
        old = self._entry
        entered = datetime.now(UTC).isoformat() if phase is not old.phase else old.entered
        entry = Entry(old.id, old.role, phase, old.container, old.peer, old.started, entered, {**old.record, **record})
        # only as it is entered: what is noted down, or written once more, is to be there at once
        with_next = phase is not old.phase and (old.role, phase) in machine.WITH_THE_NEXT

        async def write() -> None:
            await self._journal.put(entry, with_next=with_next)
            self._entry = entry

        await to_the_end(write())  # a cancel must not make the run believe in another phase than its journal does

    async def publish(self) -> None:
        """Tell whoever watches. Never fails: what is said of a move must not change the move."""
        if self._changed is not None:
            try:
                await self._changed(self)
            except Exception:
                log.exception("%s: its status could not be published", self.id)

    async def pace(self, count: int, *, compressed: bool = False) -> None:
        """Wait until as many bytes may be sent; `compressed`: of a part, which may be fewer on the wire."""
        if self.phase in PACED:
            on_the_wire = int(count / self.compression.ratio) if compressed else count
            await self._together.take(on_the_wire)
            await self.bandwidth.take(on_the_wire)

    def shown(self) -> dict[str, Any]:
        """For the journal, and what is predicted next time: the blackout without what the memory had added to it."""
        if "blackout_ms" not in self.figures or "by_memory" not in self.figures:
            return {}
        shown = {"fixed_ms": round(max(0.0, self.figures["blackout_ms"] - self.figures["by_memory"]), 1)}
        if "link_rate" in self.figures:
            shown["link_rate"] = round(self.figures["link_rate"])
        return shown

    @property
    def paced(self) -> bool:
        """Whether what is sent keeps to a rate."""
        return self.rate_limit is not None

    @property
    def rate_limit(self) -> int | None:
        """Bytes a second on the wire that are not exceeded while the container runs."""
        return min((rate for rate in (self.bandwidth.rate, self._together.rate) if rate), default=None)

    async def round_done(self, done: Round) -> None:
        """Note a round of pre-copy."""
        self.rounds.append(done)
        await self.publish()

    def sending(self, part: str) -> None:
        self.part = part

    def part_done(self, name: str, size: int, began: float, *, frozen: bool) -> None:
        """Note a part for the report; `began` on the monotonic clock."""
        ms = round((time.monotonic() - began) * 1000, 3)
        self.parts.append(Part(name=name, bytes=size, frozen=frozen, ms=ms))

    def expects(self, now: int, then: int = 0) -> None:
        """So many bytes are about to be sent, and so many after them: better known with each stage of the story."""
        self._follows = then
        self.bytes_total = self.bytes_sent + now + then

    def sent(self, count: int) -> None:
        self.bytes_sent += count
        if self.bytes_total is not None:
            self.bytes_total = max(self.bytes_total, self.bytes_sent + self._follows)
        now = time.monotonic()
        self._marks.append((now, self.bytes_sent))
        while self._marks and now - self._marks[0][0] > RATE_SECONDS:
            self._marks.pop(0)

    @property
    def wire_bytes(self) -> int:
        """What of `bytes_sent` went over the link, when it was compressed."""
        return self.bytes_sent - self.compressed.raw + self.compressed.compressed

    def rate(self) -> float:
        """Bytes a second over about the last second."""
        if len(self._marks) < 2:
            return 0.0
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / (now - then) if now > then else 0.0


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
