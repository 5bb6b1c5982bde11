"""The source, one step at a time: agent/migration/source.py, sources.py, leaving.py and run.py without their I/O.

Each function names what it mirrors. A step that an outside call can fail has a FAIL beside it; a crash may come after
any step, since every step is a state of its own.
"""

from collections.abc import Callable, Iterator

from agent.migration.machine import ENDS, Role
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.model.rules import Rules, Slip
from tests.model.state import At, Between, Call, Dump, Kind, Pages, Source, Step, Tasks
from tests.model.taking_back import BACK, TakingBack

Steps = Iterator[Step]

# source.migrate: what is on the undo stack while each line runs, by the step that is taken first
UNDO_FROM = {
    At.EXAMINE: At.TOOK_BACK,
    At.OFFER: At.UNDO_OFFER,
    At.OFFERED: At.UNDO_OFFER,
    At.POLICY: At.UNDO_POLICY,
    At.STAGE: At.UNDO_POLICY,
    At.STAGING: At.UNDO_POLICY,
    At.IMAGES: At.UNDO_IMAGES,
    At.HOLD: At.UNDO_DUMP,
    At.DUMP: At.UNDO_DUMP,
    At.DUMPING: At.UNDO_DUMP,
    At.PREPARE: At.UNDO_DUMP,
    At.PREPARING: At.UNDO_DUMP,
    At.DECIDE: At.UNDO_DUMP,
}
FINISHING = frozenset({At.GO, At.GOING, At.PAGES, At.PAGING, At.KILL, At.REMOVE, At.CLEAN, At.FORGET, At.END})
JOURNAL_DECIDES = frozenset({At.FRESH, At.IDLE, At.TOOK_BACK})
"""Where `Sources.find` has no run."""


class SourceModel(TakingBack):
    """Every step that a source can take."""

    def __init__(self, rules: Rules, persons: bool) -> None:
        super().__init__(rules)
        self._persons = persons
        self._by_line: dict[At, Callable[[Source, Between], Steps]] = {
            At.NEW: self._start,
            At.DOWN: self._restart,
            At.FRESH: self._recover,
            At.EXAMINE: self._examine,
            At.OFFER: self._offer,
            At.OFFERED: self._offered,
            At.POLICY: self._set_policy,
            At.STAGE: self._stage,
            At.STAGING: self._staging,
            At.IMAGES: self._make_images,
            At.HOLD: self._hold,
            At.DUMP: self._dump,
            At.DUMPING: self._dumping,
            At.PREPARE: self._prepare,
            At.PREPARING: self._preparing,
            At.DECIDE: self._decide,
            At.MEND: self._mend,
            At.GO: self._go,
            At.GOING: self._going,
            At.PAGES: self._pages,
            At.PAGING: self._paging,
            At.REMOVE: self._remove,
            At.CLEAN: self._clean,
            At.FORGET: self._forget,
            At.END: self._end,
            At.UNDO_DUMP: self._undo_dump,
            At.UNLOCK: self._undo,
            At.THAW: self._undo,
            At.UNDO_IMAGES: self._undo,
            At.UNDO_POLICY: self._undo,
            At.UNDO_OFFER: self._undo_offer,
            At.TOOK_BACK: self._took_back,
            At.BACK_DUMP: self._back_dump,
            At.BACK_UNLOCK: self._back,
            At.BACK_THAW: self._back,
            At.BACK_POLICY: self._back,
            At.BACK_START: self._back,
            At.BACK_IMAGES: self._back,
            At.BACK_ENTER: self._back_enter,
            At.BACK_TELL: self._back_tell,
        }

    def steps(self, s: Source, between: Between, target_alive: bool, theirs: Pages) -> Steps:
        if s.at is At.KILL:
            self.check_kill(s, theirs, between)
            yield from self._kill(s, between)
        elif (line := self._by_line.get(s.at)) is not None:
            yield from line(s, between)
        yield from self._cancelled_or_failed(s, between)
        if self._persons:
            yield from self._person(s, between, target_alive)
            yield from self._given_up(s, between)
        yield from self._by_itself(s, between)
        yield from self._faults(s, between)

    def said(self, s: Source) -> DecisionKind | None:
        """What a target that asks is told (sources.Sources.decision); None: nobody answers."""
        if not s.up:
            return None
        return self._rules.decision(s.journal if s.at in JOURNAL_DECIDES else s.memory)

    def _enters(self, s: Source, between: Between, there: Phase, at: At) -> Steps:
        yield Step(Kind.STEP, f"enters {there}", self._entered(s, there, at), between)
        if Slip.CANCELLED_WRITE_FORGOTTEN in self._rules.slips and s.at in UNDO_FROM:
            late = self._entered(s, there, UNDO_FROM[s.at])._replace(memory=s.memory)
            yield Step(Kind.CANCEL, f"is cancelled while {there} is written", late, between.hang_up())

    # --- source.migrate ---

    def _start(self, s: Source, between: Between) -> Steps:
        """sources.Sources.start"""
        begun = s._replace(at=At.EXAMINE, journal=Phase.PLANNED, memory=Phase.PLANNED)
        yield Step(Kind.STEP, "begins: PLANNED", begun, between)

    def _examine(self, s: Source, between: Between) -> Steps:
        """sources.Sources._story: the preflight, and the subject into the record"""
        yield Step(Kind.STEP, "notes what it moves", s._replace(at=At.OFFER, noted=True), between)

    def _offer(self, s: Source, between: Between) -> Steps:
        yield Step(Kind.STEP, "offers", s._replace(at=At.OFFERED), between.ask(Call.OFFER))

    def _offered(self, s: Source, between: Between) -> Steps:
        if between.reply:
            yield from self._enters(s, between.hang_up(), Phase.RESERVED, At.POLICY)
        yield from self._no_answer(s, between)

    def _set_policy(self, s: Source, between: Between) -> Steps:
        left = Slip.POLICY_LEFT in self._rules.slips
        yield Step(Kind.STEP, "sets its restart policy to no", s._replace(at=At.STAGE, policy=left), between)

    def _stage(self, s: Source, between: Between) -> Steps:
        """leaving.send_missing_layers, peer.create, passes.log, peer.stage"""
        yield Step(Kind.STEP, "asks to stage", s._replace(at=At.STAGING), between.ask(Call.STAGE))

    def _staging(self, s: Source, between: Between) -> Steps:
        if between.reply:
            yield from self._enters(s, between.hang_up(), Phase.COPYING, At.IMAGES)
        yield from self._no_answer(s, between)

    def _make_images(self, s: Source, between: Between) -> Steps:
        """passes.first; cold.Cold.copy_while_running; precopy.PreCopy._rounds, each to its end (predump.PreDumps)"""
        if s.dump is Dump.NONE:
            yield Step(Kind.STEP, "makes room for the images", s._replace(at=At.HOLD, images=True), between)
            if self._rules.rounds and s.tasks is Tasks.RUN:
                begun = s._replace(images=True, dump=Dump.ROUND)
                yield Step(Kind.STEP, "begins a round", begun, between)
                yield Step(Kind.FAIL, "can't begin a round", s._replace(at=UNDO_FROM[s.at], images=True), between)

    def _hold(self, s: Source, between: Between) -> Steps:
        """source.hold: both at once"""
        if not s.locked:
            yield Step(Kind.STEP, "locks", s._replace(locked=True), between)
        if s.tasks is Tasks.RUN:
            yield Step(Kind.STEP, "freezes", s._replace(tasks=Tasks.FROZEN), between)
        if s.locked and s.tasks is Tasks.FROZEN:
            yield from self._enters(s, between, Phase.FROZEN, At.DUMP)

    def _dump(self, s: Source, between: Between) -> Steps:
        """cold.Cold._dump"""
        dump = Dump.UNSEEN if Slip.DUMP_UNSEEN in self._rules.slips else Dump.RUNS
        yield Step(Kind.STEP, "starts CRIU", s._replace(at=At.DUMPING, dump=dump), between)

    def _dumping(self, s: Source, between: Between) -> Steps:
        """Waits, whatever happens; the images and deltas are sent meanwhile."""
        if s.dump is (Dump.SERVES if self._rules.lazy else Dump.NONE):
            yield Step(Kind.STEP, "has dumped and sent", s._replace(at=At.PREPARE), between)
        elif s.dump is Dump.NONE:
            yield Step(Kind.STEP, "sees that CRIU has failed", s._replace(at=UNDO_FROM[s.at]), between)

    def _prepare(self, s: Source, between: Between) -> Steps:
        yield Step(Kind.STEP, "sends the manifest", s._replace(at=At.PREPARING), between.ask(Call.PREPARE))

    def _preparing(self, s: Source, between: Between) -> Steps:
        if between.reply:
            yield from self._enters(s, between.hang_up(), Phase.PREPARED, At.DECIDE)
        yield from self._no_answer(s, between)

    def _no_answer(self, s: Source, between: Between) -> Steps:
        """peer_client.PeerClient._request raises"""
        why = "is refused" if between.reply is False else "times out"
        yield Step(Kind.STEP, why, s._replace(at=UNDO_FROM[s.at]), between.hang_up())

    # --- source.commit, run.Run.decide ---

    def _decide(self, s: Source, between: Between) -> Steps:
        if self._rules.lazy and s.dump is Dump.NONE:
            yield Step(Kind.STEP, "sees that the memory is gone", s._replace(at=UNDO_FROM[s.at]), between)
            return
        if Slip.COMMITS_UNJOURNALED in self._rules.slips:
            unsaid = s._replace(at=At.GO, memory=Phase.COMMITTED)
            yield Step(Kind.STEP, "decides, and writes later", unsaid, between)
            return
        decided = self._entered(s, Phase.COMMITTED, At.GO)
        yield Step(Kind.STEP, "enters committed: decided", decided, between)
        yield Step(
            Kind.FAIL, "its write fails, and is on the disk", s._replace(at=At.MEND, journal=Phase.COMMITTED), between
        )
        yield Step(Kind.FAIL, "its write fails, and is not on the disk", s._replace(at=At.MEND), between)
        if Slip.CANCEL_BEFORE_DECIDING in self._rules.slips:
            left = decided._replace(at=At.IDLE, memory=None)
            yield Step(Kind.CANCEL, "is cancelled, just before it is decided", left, between)

    def _mend(self, s: Source, between: Between) -> Steps:
        """run.Run.decide: overwrite what may have been written, for as long as it takes"""
        journal = s.journal if Slip.NOT_MENDED in self._rules.slips else s.memory
        yield Step(Kind.STEP, "mends its journal", s._replace(at=At.UNDO_DUMP, journal=journal), between)

    # --- source.finish ---

    def _go(self, s: Source, between: Between) -> Steps:
        """source.go_until_answered"""
        if Slip.KILLS_UNCONFIRMED in self._rules.slips:
            killing = self._entered(s, Phase.RUNNING, At.KILL)
            yield Step(Kind.STEP, "says go, and does not wait", killing, between.tell(Call.GO))
        else:
            yield Step(Kind.STEP, "says go", s._replace(at=At.GOING), between.ask(Call.GO))

    def _going(self, s: Source, between: Between) -> Steps:
        if between.reply:
            if Slip.COMMITS_UNJOURNALED in self._rules.slips:
                s = s._replace(journal=s.memory)
            running = self._entered(s, Phase.RUNNING, self.after_go(s))
            yield Step(Kind.STEP, "enters running", running, between.hang_up())
        else:
            why = "is told no, and says it again" if between.reply is False else "times out, and says it again"
            yield Step(Kind.STEP, why, s._replace(at=At.GO), between.hang_up())

    def _kill(self, s: Source, between: Between) -> Steps:
        """strategy.stop_serving; leaving.end_copy: it dies while it is locked; its namespace goes with it"""
        tasks = s.tasks if s.tasks is Tasks.GONE else Tasks.DEAD
        ended = s._replace(at=At.REMOVE, tasks=tasks, locked=False, dump=Dump.NONE)
        yield Step(Kind.STEP, "ends its frozen copy", ended, between)

    def _remove(self, s: Source, between: Between) -> Steps:
        yield Step(Kind.STEP, "removes its container", s._replace(at=At.CLEAN, tasks=Tasks.GONE), between)

    def _clean(self, s: Source, between: Between) -> Steps:
        yield Step(Kind.STEP, "removes the images", s._replace(at=At.FORGET, images=False), between)

    def _forget(self, s: Source, between: Between) -> Steps:
        """leaving.tell_forget"""
        yield Step(Kind.STEP, "tells to forget", s._replace(at=At.END), between.tell(Call.FORGET))
        yield Step(Kind.LOSE, "can't tell to forget", s._replace(at=At.END), between)

    def _end(self, s: Source, between: Between) -> Steps:
        ended = self._entered(s, Phase.DONE, At.IDLE)._replace(memory=None)
        yield Step(Kind.STEP, "enters done", ended, between)

    # --- what goes wrong in a story ---

    def _cancelled_or_failed(self, s: Source, between: Between) -> Steps:
        if s.at in UNDO_FROM:
            assert s.memory is not None
            undone = s._replace(at=UNDO_FROM[s.at])
            if self._rules.may_cancel(s.memory) and s.at is not At.DECIDE:
                yield Step(Kind.CANCEL, "is cancelled", undone, between.hang_up())
            if s.at is not At.DECIDE:
                yield Step(Kind.FAIL, f"fails: {s.at}", undone, between.hang_up())
        elif s.at in FINISHING and s.memory is not None:
            left = s._replace(at=At.IDLE, memory=None)
            if self._rules.may_cancel(s.memory):
                yield Step(Kind.CANCEL, "is cancelled", s._replace(at=At.TOOK_BACK), between.hang_up())
            if Slip.GIVES_UP_AFTER_DECISION in self._rules.slips and s.at not in (At.GO, At.GOING):
                yield Step(Kind.FAIL, f"fails: {s.at}, and leaves it", left, between.hang_up())
        elif s.at in BACK and s.memory is not None:
            left = s._replace(at=At.IDLE, memory=None)
            if Slip.CANCEL_STOPS_TAKING_BACK in self._rules.slips and self._rules.may_cancel(s.memory):
                yield Step(Kind.CANCEL, "is cancelled while it takes back", left, between)
            if Slip.GIVES_UP_TAKING_BACK in self._rules.slips:
                yield Step(Kind.FAIL, f"fails: {s.at}, and leaves it", left, between)

    # --- sources.Sources.resolve ---

    def _person(self, s: Source, between: Between, target_alive: bool) -> Steps:
        if s.at not in (At.GO, At.GOING) or s.memory is not Phase.COMMITTED:
            return
        words = self._rules.resolutions[Role.SOURCE, s.memory]
        line = self.after_go(s)
        given_up = self._entered(s, words[DecisionKind.COMMIT], line, resolved=True)._replace(given_up=True)
        lost = between.may_be_lost or not target_alive
        yield Step(
            Kind.PERSON,
            "is told by a person: commit",
            given_up,
            between.hang_up()._replace(person_gave_up=True, may_be_lost=lost),
        )
        if Slip.ABORT_THAWS_FIRST in self._rules.slips:
            aborted = s._replace(at=At.BACK_DUMP)
        else:
            aborted = self._entered(s, words[DecisionKind.ABORT], At.BACK_DUMP, resolved=True)
        risk = between.hang_up()._replace(may_be_two=True)
        yield Step(Kind.PERSON, "is told by a person: abort", aborted, risk)

    # --- what happens around it ---

    def _criu(self, s: Source, between: Between) -> Steps:
        """It goes on by itself, whoever has started it."""
        if s.dump is Dump.ROUND:
            yield Step(Kind.STEP, "its round ends", s._replace(dump=Dump.NONE), between)
        elif s.dump is not Dump.NONE and self._rules.lazy:
            if s.dump is not Dump.SERVES:
                yield Step(Kind.STEP, "its CRIU serves pages", s._replace(dump=Dump.SERVES), between)
            yield Step(Kind.FAIL, "its CRIU ends", s._replace(dump=Dump.NONE), between)
        elif s.dump is not Dump.NONE:
            yield Step(Kind.STEP, "its CRIU ends", s._replace(dump=Dump.NONE), between)

    def _by_itself(self, s: Source, between: Between) -> Steps:
        yield from self._criu(s, between)
        if s.outbox is not None and between.retained is not s.outbox:
            yield Step(Kind.STEP, f"publishes {s.outbox}", s, between._replace(retained=s.outbox))
        if between.retained is not None:
            yield Step(Kind.BROKER, "the broker forgets", s, between._replace(retained=None))
        for call in sorted(between.requests):
            lost = between._replace(requests=between.requests - {call})
            yield Step(Kind.LOSE, f"{call} is lost", s, lost)
        if between.reply is not None:
            yield Step(Kind.LOSE, "the answer is lost", s, between._replace(reply=None))
        if s.at is At.IDLE and s.journal in ENDS[Role.SOURCE]:
            unconfirmed = s.given_up and Slip.FORGETS_UNCONFIRMED not in self._rules.slips
            if not unconfirmed:
                yield Step(Kind.PRUNE, "prunes its journal", s._replace(journal=None, noted=False), between)

    def _faults(self, s: Source, between: Between) -> Steps:
        down = s._replace(at=At.DOWN, memory=None, stranded=False, outbox=None)
        if s.up and s.at is not At.NEW:
            yield Step(Kind.CRASH, "crashes", down, between.hang_up())
        if s.tasks in (Tasks.RUN, Tasks.FROZEN) and not s.policy:  # with its policy dockerd has it running again
            dead = s._replace(tasks=Tasks.DEAD, locked=False, dump=Dump.NONE if self._rules.lazy else s.dump)
            if s.at in UNDO_FROM and s.at is not At.DECIDE:  # sources.Sources.container_died
                dead = dead._replace(at=UNDO_FROM[s.at])
                yield Step(Kind.DIE, "its container dies", dead, between.hang_up())
            else:
                yield Step(Kind.DIE, "its container dies", dead, between)
        rebooted = down._replace(locked=False, images=False, dump=Dump.NONE)
        if s.tasks is not Tasks.GONE:
            rebooted = rebooted._replace(tasks=Tasks.RUN if s.policy else Tasks.DEAD)
        if s.at is not At.NEW and rebooted != s:
            yield Step(Kind.REBOOT, "host reboots", rebooted, between.hang_up())
