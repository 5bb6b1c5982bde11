"""The phases of a migration as data: which may follow which, and what each one means for a decision.

Pure: no I/O, nothing of Docker or of a peer. Everything that decides whether a copy may run is here, so that a model
can explore it. The rules are handover.md's; a pair that is not in the table is a bug and raises `IllegalMove`.
"""

from collections.abc import Mapping
from enum import StrEnum

from agent.base.errors import IllegalMove
from protocol.peer import DecisionKind
from protocol.status import Phase


class Role(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class OnRestart(StrEnum):
    """What an agent does with a migration that it finds in its journal when it starts."""

    TAKE_BACK = "take-back"  # undo everything; the container goes on at the source
    GO_ON = "go-on"  # decided: make it so
    ASK = "ask"  # only the source knows
    NOTHING = "nothing"


_FAILED = frozenset({Phase.ROLLED_BACK, Phase.STRANDED})
_THROWN_AWAY = frozenset({Phase.DISCARDED, Phase.STRANDED})

MOVES: Mapping[Role, Mapping[Phase, frozenset[Phase]]] = {
    Role.SOURCE: {
        Phase.PLANNED: frozenset({Phase.RESERVED, Phase.REFUSED}) | _FAILED,
        Phase.RESERVED: frozenset({Phase.COPYING}) | _FAILED,
        Phase.COPYING: frozenset({Phase.FROZEN}) | _FAILED,
        Phase.FROZEN: frozenset({Phase.PREPARED}) | _FAILED,
        Phase.PREPARED: frozenset({Phase.COMMITTED}) | _FAILED,
        # decided: forward only. A person may still say otherwise, and takes the risk (`RESOLUTIONS`).
        Phase.COMMITTED: frozenset({Phase.RUNNING}),
        Phase.RUNNING: frozenset({Phase.DONE}),
        # not decided, or not any more: what could not be taken back at first is tried again until it is
        Phase.STRANDED: frozenset({Phase.ROLLED_BACK}),
    },
    Role.TARGET: {
        Phase.RESERVED: frozenset({Phase.STAGED}) | _THROWN_AWAY,
        Phase.STAGED: frozenset({Phase.RESTORING}) | _THROWN_AWAY,
        Phase.RESTORING: frozenset({Phase.PREPARED}) | _THROWN_AWAY,
        # neither runs nor gives up by itself: it leaves this phase by the source's word (or a person's)
        Phase.PREPARED: frozenset({Phase.RUNNING}) | _THROWN_AWAY,
        # STRANDED: its copy was gone before it ran. The source has another, and must not take this one for it
        Phase.RUNNING: frozenset({Phase.DONE, Phase.STRANDED}),
        Phase.STRANDED: frozenset({Phase.DISCARDED}),
    },
}

RESOLUTIONS: Mapping[tuple[Role, Phase], Mapping[DecisionKind, Phase]] = {
    # abort: said first, durably, and then taken back, also after a crash in between
    (Role.SOURCE, Phase.COMMITTED): {DecisionKind.COMMIT: Phase.RUNNING, DecisionKind.ABORT: Phase.STRANDED},
    (Role.TARGET, Phase.PREPARED): {DecisionKind.COMMIT: Phase.RUNNING, DecisionKind.ABORT: Phase.DISCARDED},
    (Role.TARGET, Phase.STRANDED): {DecisionKind.ABORT: Phase.DISCARDED},
}
"""What a person may say of a migration in doubt (rule 8)."""

WITH_THE_NEXT = frozenset({(Role.SOURCE, Phase.FROZEN), (Role.SOURCE, Phase.PREPARED), (Role.TARGET, Phase.RESTORING)})
"""Phases in the blackout whose record need not be on the disk before it goes on, but with the one that follows.

An agent that crashes finds it all the same; after a power cut the phase before is found, and leads to the same.
"""

FIRST: Mapping[Role, Phase] = {Role.SOURCE: Phase.PLANNED, Role.TARGET: Phase.RESERVED}
ENDS: Mapping[Role, frozenset[Phase]] = {
    Role.SOURCE: frozenset({Phase.DONE, Phase.REFUSED, Phase.ROLLED_BACK}),
    Role.TARGET: frozenset({Phase.DONE, Phase.DISCARDED}),
}


def move(role: Role, here: Phase, there: Phase, *, resolved: bool = False) -> Phase:
    """The phase after a move from `here`; raises IllegalMove, and nothing has happened, where the table has no pair."""
    if there in MOVES[role].get(here, frozenset()):
        return there
    if resolved and there in RESOLUTIONS.get((role, here), {}).values():
        return there
    raise IllegalMove(f"{role}: {here} -> {there}")


def decision(phase: Phase | None) -> DecisionKind:
    """The source's answer to a target that asks, by the source's phase; None where its journal has no such migration.

    A migration that the journal does not know was never committed: the record is written before `go` is sent, and
    kept until the target has confirmed. So "not known" is an abort (presumed abort).
    """
    if phase is None:
        return DecisionKind.ABORT
    if phase in (Phase.COMMITTED, Phase.RUNNING, Phase.DONE):
        return DecisionKind.COMMIT
    if phase in (Phase.REFUSED, Phase.STRANDED, Phase.ROLLED_BACK):
        return DecisionKind.ABORT
    return DecisionKind.PENDING


def on_restart(role: Role, phase: Phase) -> OnRestart:
    """What to do with a migration found in the journal in this phase (rule 6)."""
    if phase in ENDS[role]:
        return OnRestart.NOTHING
    if role is Role.SOURCE:
        return OnRestart.GO_ON if phase in (Phase.COMMITTED, Phase.RUNNING) else OnRestart.TAKE_BACK
    if phase in (Phase.PREPARED, Phase.STRANDED):
        return OnRestart.ASK
    return OnRestart.GO_ON if phase is Phase.RUNNING else OnRestart.TAKE_BACK


def may_cancel(phase: Phase) -> bool:
    """Whether the source can still take the migration back by itself (rule 1)."""
    return phase in (Phase.PLANNED, Phase.RESERVED, Phase.COPYING, Phase.FROZEN, Phase.PREPARED)


def may_run(phase: Phase) -> bool:
    """Whether the target's copy may have runnable tasks and an unlocked network."""
    return phase in (Phase.RUNNING, Phase.DONE)


def may_expire(phase: Phase) -> bool:
    """Whether a target may discard by itself when the source is silent: never from PREPARED on (rule 2)."""
    return phase in (Phase.RESERVED, Phase.STAGED, Phase.RESTORING)


def answer_to_asking(phase: Phase, answer: DecisionKind) -> Phase | None:
    """Where a target in `phase` goes on the source's word; None: stay and ask again."""
    if phase in (Phase.PREPARED, Phase.STRANDED) and answer is DecisionKind.ABORT:
        return Phase.DISCARDED
    if phase is Phase.PREPARED and answer is DecisionKind.COMMIT:
        return Phase.RUNNING
    return None
