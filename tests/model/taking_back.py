"""The source on its way back: what it does at an undo and after a restart. The rest of it is in source.py.

Mirrors base/undo.py, and of agent/migration: moving.py (`took_back`), sources.py from there on, leaving.py.
"""

from collections.abc import Iterator

from agent.migration.machine import ENDS, OnRestart, Role
from agent.migration.sources import TELLS
from protocol.status import Phase
from tests.model.pages import Serving
from tests.model.rules import Broken, Rules, Slip
from tests.model.state import At, Between, Call, Dump, Kind, Source, Step, Tasks

Steps = Iterator[Step]

UNDOING = {
    At.UNLOCK: At.THAW,
    At.THAW: At.UNDO_IMAGES,
    At.UNDO_IMAGES: At.UNDO_POLICY,
    At.UNDO_POLICY: At.UNDO_OFFER,
}
BACK = (
    At.BACK_DUMP,
    At.BACK_UNLOCK,
    At.BACK_THAW,
    At.BACK_POLICY,
    At.BACK_START,
    At.BACK_IMAGES,
    At.BACK_ENTER,
)
"""sources.Sources.take_back, in its order."""


class TakingBack(Serving):
    """The undo of a story, and the recovery of one that a crash has cut."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def _entered(self, s: Source, there: Phase, at: At, *, resolved: bool = False) -> Source:
        """run.Run.enter; sources.Sources._changed."""
        assert s.memory is not None
        if s.journal is not s.memory:
            raise Broken(f"the journal says {s.journal}, and the run {s.memory} is to go to {there}")
        self._rules.move(Role.SOURCE, s.memory, there, resolved=resolved)
        word = self._rules.decision(there) if there in TELLS else s.outbox
        return s._replace(at=at, journal=there, memory=there, outbox=word)

    # --- undo.Undo._run: each step is tried once; one that fails does not stop the others ---

    def _undo_dump(self, s: Source, between: Between) -> Steps:
        """Dump.take, PostCopy._serve: wait for CRIU before the error goes on; then source.let_go, which begins with
        PostCopy.stop_serving and goes no further where that fails
        """
        if s.dump is Dump.NONE:
            yield Step(Kind.STEP, "has waited for CRIU", s._replace(at=At.UNLOCK), between)
        elif s.dump is Dump.SERVES:
            gone = s._replace(at=At.UNLOCK, dump=Dump.NONE)
            yield Step(Kind.STEP, "hangs up on CRIU", gone, between)
            there = At.UNLOCK if Slip.THAWS_UNDER_CRIU in self._rules.slips else At.UNDO_IMAGES
            yield Step(Kind.FAIL, "CRIU does not let go", s._replace(at=there, stranded=True), between)

    def _undo(self, s: Source, between: Between) -> Steps:
        after = UNDOING[s.at]
        if s.at is At.UNDO_IMAGES and s.dump is Dump.ROUND and Slip.UNDOES_UNDER_A_ROUND not in self._rules.slips:
            yield Step(Kind.FAIL, f"fails: {s.at}", s._replace(at=after, stranded=True), between)
            return  # precopy.PreCopy.release: PreDumps.over
        undone = _undone(s)._replace(at=after)
        if s.at is At.UNDO_POLICY and Slip.NOT_STARTED_AFTER_DEATH not in self._rules.slips:
            undone = undone._replace(tasks=_started(s.tasks))
        yield Step(Kind.STEP, str(s.at), undone, between)
        yield Step(Kind.FAIL, f"fails: {s.at}", s._replace(at=after, stranded=True), between)

    def _undo_offer(self, s: Source, between: Between) -> Steps:
        """leaving.tell_discard: never fails"""
        yield Step(Kind.STEP, "tells to discard", s._replace(at=At.TOOK_BACK), between.tell(Call.DISCARD))
        yield Step(Kind.LOSE, "can't tell to discard", s._replace(at=At.TOOK_BACK), between)

    def _took_back(self, s: Source, between: Between) -> Steps:
        """moving.took_back"""
        there = Phase.ROLLED_BACK
        if s.stranded:
            there = Phase.STRANDED
        elif s.memory is Phase.PLANNED:
            there = Phase.REFUSED
        if Slip.NOT_MENDED in self._rules.slips:
            s = s._replace(journal=s.memory)
        if there is Phase.STRANDED:
            ended = self._entered(s, there, At.BACK_DUMP)._replace(stranded=False)
        else:
            ended = self._entered(s, there, At.IDLE)._replace(memory=None)
        yield Step(Kind.STEP, f"enters {there}", ended, between)
        if Slip.GIVES_UP_TAKING_BACK in self._rules.slips:
            left = s._replace(at=At.IDLE, memory=None, stranded=False)
            yield Step(Kind.FAIL, f"can't enter {there}, and leaves it", left, between)

    # --- sources.Sources.recover ---

    def _restart(self, s: Source, between: Between) -> Steps:
        yield Step(Kind.STEP, "is started", s._replace(at=At.FRESH), between)

    def _recover(self, s: Source, between: Between) -> Steps:
        idle = s._replace(at=At.IDLE)
        if s.journal is None or s.journal in ENDS[Role.SOURCE]:
            yield Step(Kind.STEP, "has nothing to take up", idle, between)
            return
        found = s._replace(memory=s.journal)
        what = self._rules.on_restart(Role.SOURCE, s.journal)
        if not s.noted:
            there = Phase.REFUSED if s.journal is Phase.PLANNED else Phase.ROLLED_BACK
            ended = self._entered(found, there, At.IDLE)._replace(memory=None)
            yield Step(Kind.STEP, f"had not begun: {there}", ended, between)
        elif what is OnRestart.TAKE_BACK:
            yield Step(Kind.STEP, f"found {s.journal}: takes back", found._replace(at=At.BACK_DUMP), between)
        elif what is OnRestart.GO_ON:
            line = At.GO if s.journal is Phase.COMMITTED else self.after_go(s)
            goes_on = found._replace(at=line, outbox=self._rules.decision(s.journal))
            yield Step(Kind.STEP, f"found {s.journal}: goes on", goes_on, between)
        if s.noted and Slip.ADDRESS_FIRST in self._rules.slips:
            yield Step(Kind.FAIL, "does not know its peer's address yet: leaves it", idle, between)

    # --- sources.Sources.take_back: what fails is tried again ---

    def _back_dump(self, s: Source, between: Between) -> Steps:
        """strategy.stop_serving; leaving.wait_for_left_behind_dump"""
        if s.dump is Dump.SERVES:
            yield Step(Kind.STEP, "hangs up on CRIU", s._replace(at=At.BACK_UNLOCK, dump=Dump.NONE), between)
        elif s.dump not in (Dump.RUNS, Dump.ROUND):
            yield Step(Kind.STEP, "has no CRIU to wait for", s._replace(at=At.BACK_UNLOCK), between)

    def _back(self, s: Source, between: Between) -> Steps:
        after = BACK[BACK.index(s.at) + 1]
        yield Step(Kind.STEP, str(s.at), _undone(s)._replace(at=after), between)

    def _back_enter(self, s: Source, between: Between) -> Steps:
        if s.memory is Phase.COMMITTED:  # Slip.ABORT_THAWS_FIRST
            s = s._replace(memory=Phase.STRANDED, journal=Phase.STRANDED)
        yield Step(Kind.STEP, "enters rolled-back", self._entered(s, Phase.ROLLED_BACK, At.BACK_TELL), between)

    def _back_tell(self, s: Source, between: Between) -> Steps:
        left = s._replace(at=At.IDLE, memory=None)
        yield Step(Kind.STEP, "tells to discard", left, between.tell(Call.DISCARD))
        yield Step(Kind.LOSE, "can't tell to discard", left, between)


def _undone(s: Source) -> Source:
    """source.release, leaving.put_policy_back, leaving.start_as_docker_would, cold.Cold.release"""
    match s.at:
        case At.UNLOCK | At.BACK_UNLOCK:
            return s._replace(locked=False)
        case At.THAW | At.BACK_THAW:
            return s._replace(tasks=Tasks.RUN if s.tasks is Tasks.FROZEN else s.tasks)
        case At.UNDO_POLICY | At.BACK_POLICY:
            return s._replace(policy=True)
        case At.BACK_START:
            return s._replace(tasks=_started(s.tasks))
        case _:
            return s._replace(images=False)


def _started(tasks: Tasks) -> Tasks:
    """leaving.start_as_docker_would"""
    return Tasks.RUN if tasks is Tasks.DEAD else tasks
