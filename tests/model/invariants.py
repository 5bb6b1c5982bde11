"""What must hold in every state, and where a story may end: the invariants of handover.md.

What a phase means is asked of the product, whatever rules a search runs.
"""

from agent.migration import machine
from agent.migration.machine import ENDS, Role
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.model.state import At, Between, Does, Dump, Pages, Source, Target, Tasks, Waiting

TWICE = "runs on both hosts"
NO_WAY = "nothing that the agents do from here leads to a good end"
DISCARDING = frozenset({Does.REMOVE, Does.SWEEP, Does.DISCARDED})

# What is left to a person, and why it has to be
COPY_GONE = "decided, and the target's copy is gone before it ran: what is decided is not taken back but by a person"
MEMORY_GONE = "it ran at the target, and the rest of its memory can't get there any more: it is lost, and they say so"
GIVEN_UP = "the same, and a person has given up the source's copy too: it is lost, as they were told; theirs to remove"


def broken_at_source(s: Source) -> str:
    if s.runs and s.journal is not None and machine.decision(s.journal) is DecisionKind.COMMIT:
        return "the source runs its copy, and its journal says commit"
    if s.tasks is Tasks.RUN and s.dump not in (Dump.NONE, Dump.ROUND):
        return "the source's tasks run while CRIU dumps them"
    if s.dump is Dump.ROUND and (s.locked or s.tasks is Tasks.FROZEN or not s.images):
        return f"held by us, or without images, in a round of pre-copy: {left_over(s)}"
    if s.journal in ENDS[Role.SOURCE]:
        as_it_should = s.tasks is Tasks.GONE if s.journal is Phase.DONE else s.tasks is Tasks.RUN and s.policy
        if not as_it_should or s.locked or s.images:
            return f"{s.journal} at the source, and it is not as it should be: {left_over(s)}"
    return ""


def broken_at_target(t: Target) -> str:
    if t.runs and (t.journal is None or not machine.may_run(t.journal)):
        return f"the target's copy runs, and its journal says {t.journal}"
    if t.runs and t.pages is Pages.LOST:
        return "the target's copy runs, and reads zeros for the memory that it lacks"
    if t.journal is Phase.DISCARDED and (t.tasks is not Tasks.GONE or t.locked or t.hand_over or t.slot):
        return f"discarded at the target, and something is left: {left_over(t)}"
    if t.journal is Phase.DONE and (not t.runs or t.hand_over or not t.policy or t.slot):
        return f"done at the target, and it is not as it should be: {left_over(t)}"
    return ""


def left_over(side: Source | Target) -> str:
    return ", ".join(f"{name} {value}" for name, value in side._asdict().items() if value not in (None, False))


def at_rest(s: Source, t: Target, between: Between) -> bool:
    """All has ended: nobody works, nothing is on its way, both journals have closed it (or never had it)."""
    return (
        s.at is At.IDLE
        and t.does is Does.FREE
        and not t.slot
        and not between.requests
        and (s.journal is None or s.journal in ENDS[Role.SOURCE])
        and (t.journal is None or t.journal in ENDS[Role.TARGET])
    )


def good_end(s: Source, t: Target, between: Between) -> bool:
    """At rest, and it runs exactly once; or as a person was told that it may end."""
    copies = s.runs + t.runs
    fair = copies == 1 or (copies == 2 and between.may_be_two) or (copies == 0 and between.may_be_lost)
    silently = t.lacked and not between.may_be_lost
    return fair and not silently and at_rest(s, t, between)


def needs_person(s: Source, t: Target, between: Between) -> str:
    """Why this state is left to a person, if it may be."""
    cut_off = t.pages is Pages.LOST or (t.pages is Pages.COMING and s.dump is not Dump.SERVES)
    to_run = t.pages is Pages.COMING and (
        s.journal in (Phase.COMMITTED, Phase.RUNNING, Phase.DONE) or between.may_be_two
    )
    if cut_off and (t.released or t.journal is Phase.RUNNING or to_run):
        return MEMORY_GONE
    discarding = between.may_be_lost and (t.waiting is not Waiting.NONE or t.does in DISCARDING)
    if t.released or (t.alive and t.pages is not Pages.LOST and not discarding):
        return ""
    if s.at is At.DECIDE or s.journal is Phase.COMMITTED:
        return COPY_GONE
    return GIVEN_UP if between.person_gave_up else ""
