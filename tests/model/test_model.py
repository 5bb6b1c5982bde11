"""The two machines together, under any fault: never lost, never twice, nothing left over, in every reachable state.

And the model itself: each rule of the product that is swapped, and each step that is left out, must be found.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from agent.migration import machine
from agent.migration.machine import OnRestart, Role
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.model import invariants
from tests.model.rules import OPEN, Rules, Slip
from tests.model.search import Found, Search
from tests.model.state import FAULTS, Kind

LEAST_STATES = 200_000
LEAST_WITH_PERSONS = 900_000
"""Below these the model has lost something that it had."""


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Millions of numbers and no cycle among them: looking for one is a fifth of the time."""
    gc.disable()
    yield
    gc.enable()


def show(search: Search, stuck: dict[str, list[int]]) -> str:
    lines = [f"\n{search.found}"]
    for why, states in stuck.items():
        if states:
            lines += [f"{len(states):>9,} left to a person: {why}; the first:"]
            lines += [f"{'':>12}{line}" for line in search.trace(min(states))[-8:]]
    return "\n".join(lines)


def explore(faults: frozenset[Kind], *, lazy: bool = False, rounds: bool = False) -> tuple[Found, dict[str, list[int]]]:
    search = Search(Rules(lazy=lazy, rounds=rounds), faults)
    seen = search.run()
    assert not seen.violation, str(seen)
    stuck = search.stuck()
    print(show(search, stuck))
    return seen, stuck


# --- what must hold ---


def test_invariants_hold_in_every_state_under_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """All but persons; without them nothing may be lost or run twice, whatever the risk."""
    with capsys.disabled():
        seen, stuck = explore(FAULTS - {Kind.PERSON})
    assert len(seen.states) > LEAST_STATES
    assert seen.transitions > 5 * LEAST_STATES
    assert {why for why, states in stuck.items() if states} == {invariants.COPY_GONE}


def test_invariants_hold_with_what_a_person_may_say_at_any_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """A container that dies by itself is left out here: to the search it is a reboot, of one container."""
    with capsys.disabled():
        seen, stuck = explore(FAULTS - {Kind.DIE})
    assert len(seen.states) > LEAST_WITH_PERSONS
    assert seen.transitions > 5 * LEAST_WITH_PERSONS
    assert not stuck[""], "a person must be able to end what is left to a person"


def test_without_a_lost_copy_nothing_is_ever_left_to_a_person() -> None:
    faults = FAULTS - {Kind.PERSON, Kind.REBOOT, Kind.DIE}
    _, stuck = explore(faults)
    assert not any(stuck.values())


def test_invariants_hold_in_post_copy_under_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        seen, stuck = explore(FAULTS - {Kind.PERSON}, lazy=True)
    assert len(seen.states) > LEAST_STATES
    assert {why for why, states in stuck.items() if states} == {invariants.COPY_GONE, invariants.MEMORY_GONE}


@pytest.mark.parametrize("lazy", [False, True])
def test_invariants_hold_with_rounds_of_pre_copy(lazy: bool) -> None:
    """Also where what is left follows. With the faults that can meet a round; the others are seen above."""
    _, stuck = explore(frozenset({Kind.CRASH, Kind.CANCEL, Kind.FAIL, Kind.REBOOT, Kind.DIE}), lazy=lazy, rounds=True)
    assert not stuck[""]


@pytest.mark.parametrize("fault", [Kind.REBOOT, Kind.FAIL])
def test_in_post_copy_a_person_can_end_what_is_left_to_a_person(fault: Kind) -> None:
    """With the faults that lose memory alone: the others multiply the states, and have been seen above."""
    _, stuck = explore(frozenset({Kind.PERSON, fault}), lazy=True)
    assert not stuck[""]
    assert stuck[invariants.MEMORY_GONE]


def test_in_post_copy_nothing_is_left_to_a_person_as_long_as_hosts_and_criu_stay_up() -> None:
    _, stuck = explore(FAULTS - {Kind.PERSON, Kind.REBOOT, Kind.DIE, Kind.FAIL}, lazy=True)
    assert not any(stuck.values())


@pytest.mark.xfail(
    condition=bool(OPEN), strict=True, reason=f"open in the product: {', '.join(sorted(which.name for which in OPEN))}"
)
def test_the_product_has_none_of_the_slips_that_the_model_finds() -> None:
    assert not OPEN


# --- that the model can fail ---


@dataclass(frozen=True)
class Wrong:
    """Something done wrong, the faults that show it, and what the search must say."""

    name: str
    rules: Rules
    says: str
    faults: tuple[Kind, ...] = ()


def slip(which: Slip, says: str, *faults: Kind, lazy: bool = False, rounds: bool = False) -> Wrong:
    return Wrong(which.name.lower(), Rules(slips=frozenset({which}), lazy=lazy, rounds=rounds), says, faults)


def rule(name: str, says: str, *faults: Kind, **swapped: Callable[..., object]) -> Wrong:
    return Wrong(name, replace(Rules(), **swapped), says, faults)  # type: ignore[arg-type]


def found(role: Role, phase: Phase, what: OnRestart) -> Callable[[Role, Phase], OnRestart]:
    return lambda whose, here: what if (whose, here) == (role, phase) else machine.on_restart(whose, here)


def decides(phase: Phase | None, word: DecisionKind) -> Callable[[Phase | None], DecisionKind]:
    return lambda here: word if here is phase else machine.decision(here)


def hears(word: DecisionKind, there: Phase) -> Callable[[Phase, DecisionKind], Phase | None]:
    return lambda here, answer: (
        there if (here, answer) == (Phase.PREPARED, word) else machine.answer_to_asking(here, answer)
    )


TWICE, NO_WAY = invariants.TWICE, invariants.NO_WAY
SAYS_COMMIT, NOT_AS_IT_SHOULD = "its journal says commit", "not as it should be"
CRASH, REBOOT, FAIL, CANCEL, PERSON = Kind.CRASH, Kind.REBOOT, Kind.FAIL, Kind.CANCEL, Kind.PERSON
COMMIT, ABORT, PENDING = DecisionKind.COMMIT, DecisionKind.ABORT, DecisionKind.PENDING
COMMITTED, PREPARED = Phase.COMMITTED, Phase.PREPARED

RULES = [
    rule("runs_on_pending", TWICE, answer_to_asking=hears(PENDING, Phase.RUNNING)),
    rule("runs_on_abort", TWICE, answer_to_asking=hears(ABORT, Phase.RUNNING)),
    rule("discards_on_commit", NO_WAY, answer_to_asking=hears(COMMIT, Phase.DISCARDED)),
    rule("unknown_is_commit", TWICE, Kind.PRUNE, decision=decides(None, COMMIT)),
    rule("prepared_is_commit", TWICE, FAIL, decision=decides(PREPARED, COMMIT)),
    rule("committed_is_abort", NO_WAY, decision=decides(COMMITTED, ABORT)),
    rule("expires_prepared", NO_WAY, may_expire=lambda phase: phase is PREPARED or machine.may_expire(phase)),
    rule("never_expires", NO_WAY, Kind.LOSE, may_expire=lambda _: False),
    rule("cancels_committed", "committed -> rolled-back", CANCEL, may_cancel=lambda phase: phase is not Phase.RUNNING),
    rule("discards_running", "running -> discarded", Kind.DOUBLE, CANCEL, PERSON, may_run=lambda _: False),
    rule("takes_back_committed", SAYS_COMMIT, CRASH, on_restart=found(Role.SOURCE, COMMITTED, OnRestart.TAKE_BACK)),
    rule("goes_on_prepared", "prepared -> done", CRASH, on_restart=found(Role.SOURCE, PREPARED, OnRestart.GO_ON)),
    rule("leaves_frozen", NO_WAY, CRASH, on_restart=found(Role.SOURCE, Phase.FROZEN, OnRestart.NOTHING)),
    rule("target_goes_on", TWICE, CRASH, on_restart=found(Role.TARGET, PREPARED, OnRestart.GO_ON)),
    rule("target_takes_back", NO_WAY, CRASH, on_restart=found(Role.TARGET, PREPARED, OnRestart.TAKE_BACK)),
]
SLIPS = [
    slip(Slip.ADDRESS_FIRST, NO_WAY, CRASH, FAIL),
    slip(Slip.GIVES_UP_TAKING_BACK, NO_WAY, CRASH, FAIL),
    slip(Slip.CANCEL_STOPS_TAKING_BACK, NO_WAY, CRASH, CANCEL),
    slip(Slip.GIVES_UP_AFTER_DECISION, NO_WAY, FAIL),
    slip(Slip.CANCEL_BEFORE_DECIDING, NO_WAY, CANCEL),
    slip(Slip.CANCELLED_WRITE_FORGOTTEN, "the journal says reserved, and the run planned", CANCEL),
    slip(Slip.ABORT_THAWS_FIRST, SAYS_COMMIT, PERSON),
    slip(Slip.DUMP_UNSEEN, "while CRIU dumps them", CRASH),
    slip(Slip.FORGETS_UNCONFIRMED, NO_WAY, PERSON, Kind.PRUNE),
    slip(Slip.NOT_MENDED, SAYS_COMMIT, FAIL),
    slip(Slip.NOT_STARTED_AFTER_DEATH, NOT_AS_IT_SHOULD, Kind.DIE),
    slip(Slip.POLICY_LEFT, SAYS_COMMIT, REBOOT),
    slip(Slip.COMMITS_UNJOURNALED, TWICE, CRASH),
    slip(Slip.KILLS_WITH_PAGES_MISSING, "whose memory has not got across", lazy=True),
    slip(Slip.THAWS_UNDER_CRIU, "while CRIU dumps them", FAIL, CANCEL, lazy=True),
    slip(Slip.UNDOES_UNDER_A_ROUND, "in a round of pre-copy", CANCEL, rounds=True),
    slip(Slip.KILLS_UNCONFIRMED, NO_WAY, REBOOT),
    slip(Slip.SETTLES_UNRELEASED, NOT_AS_IT_SHOULD, FAIL),
    slip(Slip.RUNS_UNSEEN, NO_WAY, REBOOT, PERSON),
    slip(Slip.DISCARDS_UNCHECKED, "running -> discarded", Kind.STOP),
    slip(Slip.FORGET_DROPS_WAITING, NO_WAY, PERSON),
    slip(Slip.NOT_STARTED_AFTER_REBOOT, NOT_AS_IT_SHOULD, REBOOT),
    slip(Slip.POLICY_EARLY, TWICE, REBOOT),
    slip(Slip.RUNS_ON_ZEROS, "reads zeros", FAIL, lazy=True),
    slip(Slip.WHOLE_WITHOUT_CHANNEL, NO_WAY, REBOOT, lazy=True),
    slip(Slip.RELEASED_EARLY, NOT_AS_IT_SHOULD, CRASH),
]


@pytest.mark.parametrize("wrong", [*RULES, *SLIPS], ids=lambda wrong: wrong.name)
def test_what_is_done_wrong_is_found(wrong: Wrong) -> None:
    """Shortest first: `pytest -rP` shows the way to each."""
    seen = Search(wrong.rules, wrong.faults).find()
    print(f"{wrong.name}\n{seen}")
    assert wrong.says in seen.violation
    assert seen.trace


def test_every_slip_is_tried() -> None:
    assert [wrong.name for wrong in SLIPS] == [which.name.lower() for which in Slip]
