"""Requests that come too late for a target to do anything about them: what carries them need not be looked at."""

from agent.migration.machine import ENDS, Role
from protocol.status import Phase
from tests.model.state import Call, Target

CLOSED = ENDS[Role.TARGET]
NO_EFFECT: dict[Call, frozenset[Phase]] = {
    Call.OFFER: frozenset(Phase),
    Call.STAGE: frozenset(Phase) - {Phase.RESERVED},
    Call.PREPARE: frozenset(Phase) - {Phase.RESERVED, Phase.STAGED},
    Call.GO: CLOSED,
    Call.ARRIVED: frozenset(Phase),
    Call.FORGET: CLOSED,
    Call.DISCARD: CLOSED,
}


def inert(t: Target) -> tuple[frozenset[Call], bool]:
    """Requests that can change nothing here any more, however late they come; and whether no answer can, either."""
    return frozenset(call for call, phases in NO_EFFECT.items() if t.journal in phases), t.journal in CLOSED
