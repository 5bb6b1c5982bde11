"""When rounds of pre-copy end, and with what: every writer comes to an end, and what is frozen fits."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.checkpoint.dirty import Written
from agent.strategy.convergence import (
    FIXED_MS,
    Ahead,
    Bounds,
    Then,
    Verdict,
    Wishes,
    foresee,
    memory_ms,
    verdict,
)
from protocol.status import Round

MIB = 1 << 20
MEMORY = 256 * MIB
RATE = 100 * MIB


def a_round(number: int, sent: int, left: int, throttled: int = 0) -> Round:
    ms = sent / RATE * 1000 + 50
    predicted = FIXED_MS + memory_ms(left, RATE, MEMORY)
    return Round(
        number=number, bytes=sent, file_bytes=0, ms=ms, frozen_ms=20, left_bytes=left, rate=RATE,
        predicted_ms=predicted, throttled=throttled,
    )  # fmt: skip


def rounds_of(written_a_second: Callable[[int], float], wishes: Wishes) -> tuple[list[Round], Verdict]:
    """All rounds of a container that writes so many bytes a second, by how far it is throttled; and their end."""
    done: list[Round] = []
    found, left = Verdict(Then.ROUND), MEMORY
    while found.then in (Then.ROUND, Then.THROTTLE):
        sent = left
        seconds = sent / RATE + 0.05
        left = min(MEMORY, int(written_a_second(found.throttle) * seconds))
        done.append(a_round(len(done) + 1, sent, left, found.throttle))
        found = verdict(done, MEMORY, wishes)
    return done, found


def test_one_that_writes_little_is_frozen_as_soon_as_it_fits() -> None:
    done, found = rounds_of(lambda _: MIB, Wishes(max_blackout_ms=900))
    assert found.then is Then.FREEZE
    assert len(done) <= 2
    assert done[-1].predicted_ms <= 900
    assert "within 900 ms" in found.why


def test_one_that_writes_faster_than_the_link_is_given_up_where_nothing_else_is_allowed() -> None:
    done, found = rounds_of(lambda _: 4 * RATE, Wishes(max_blackout_ms=900))
    assert (found.then, len(done)) == (Then.GIVE_UP, 2)
    assert "faster than that can be sent" in found.why


def test_it_is_left_to_post_copy_where_that_is_allowed() -> None:
    assert rounds_of(lambda _: 4 * RATE, Wishes(max_blackout_ms=900, postcopy=True))[1].then is Then.POSTCOPY


def test_it_is_throttled_step_by_step_until_it_fits() -> None:
    done, found = rounds_of(lambda percent: 4 * RATE * (1 - percent / 100), Wishes(900, throttle=99, postcopy=True))
    assert found.then is Then.FREEZE
    steps = [one.throttled for one in done]
    assert steps == sorted(steps)
    assert {step for step in steps if step} <= {20, 40, 60, 80, 99}
    assert steps[-1] > 60


def test_never_further_than_was_allowed() -> None:
    done, found = rounds_of(lambda percent: 4 * RATE * (1 - percent / 100), Wishes(900, throttle=30))
    assert found.then is Then.GIVE_UP
    assert max(one.throttled for one in done) == 30


def test_where_no_blackout_is_asked_for_it_goes_on_while_that_helps() -> None:
    done, found = rounds_of(lambda _: RATE / 2, Wishes())
    assert found.then is Then.FREEZE
    assert len(done) > 3, "it halves each time"
    assert rounds_of(lambda _: 4 * RATE, Wishes())[1].then is Then.FREEZE, "nobody has said that it may not take long"


def test_the_first_round_is_compared_with_nothing() -> None:
    assert verdict([a_round(1, MEMORY, MEMORY)], MEMORY, Wishes(900)).then is Then.ROUND


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (Bounds(rounds=2), "2 rounds"),
        (Bounds(seconds=1), "may go on for 1 s"),
        (Bounds(copies=0.5), "sent 0.5 times over"),
    ],
)
def test_rounds_are_bounded_in_number_time_and_bytes(bounds: Bounds, why: str) -> None:
    done = [a_round(1, MEMORY, MEMORY // 2), a_round(2, MEMORY // 2, MEMORY // 4)]
    assert verdict(done, MEMORY, Wishes(900)).then is Then.ROUND
    found = verdict(done, MEMORY, Wishes(900, throttle=99), bounds)
    assert found.then is Then.GIVE_UP, "nor is it throttled then"
    assert why in found.why
    assert verdict(done, MEMORY, Wishes(900, postcopy=True), bounds).then is Then.POSTCOPY


def test_the_prediction_is_what_is_left_and_what_the_target_reads() -> None:
    assert memory_ms(0, RATE, 0) == 0
    assert memory_ms(RATE, RATE, 0) == 1000
    assert memory_ms(0, RATE, 1_200_000_000) == 1000
    assert memory_ms(0, RATE, 0, held_ms=560) == 500, "a slow machine, or many tasks"
    assert memory_ms(0, RATE, 0, held_ms=1) == 0


@given(
    writes=some.lists(some.floats(0, 8 * RATE), min_size=1, max_size=8),
    limit=some.one_of(some.none(), some.integers(100, 20_000)),
    throttle=some.integers(0, 99),
    postcopy=some.booleans(),
)
def test_whatever_it_writes_rounds_end_and_what_is_frozen_fits(
    writes: list[float], limit: int | None, throttle: int, postcopy: bool
) -> None:
    turn = iter(writes * 40)
    done, found = rounds_of(lambda percent: next(turn) * (1 - percent / 100), Wishes(limit, throttle, postcopy))
    assert len(done) <= Bounds().rounds
    assert sum(one.bytes for one in done) <= (Bounds().copies + 1) * MEMORY
    assert max(one.throttled for one in done) <= throttle
    if found.then is Then.FREEZE and limit is not None:
        assert done[-1].predicted_ms <= limit
    assert found.then is not Then.POSTCOPY or postcopy


def ahead(soon: float, later: float, rate: float = RATE) -> Ahead:
    return Ahead(MEMORY, Written(int(soon), 0.5, int(later), 1.0), rate, RATE)


def test_what_it_was_seen_to_write_tells_how_its_rounds_would_end() -> None:
    again_and_again = foresee(ahead(20 * MIB, 20 * MIB), Wishes(1000))
    assert again_and_again.left_bytes == 20 * MIB, "as often as it writes there: it goes once"
    assert again_and_again.predicted_ms <= 1000
    goes_on = foresee(ahead(20 * MIB, 40 * MIB), Wishes(900))
    assert 20 * MIB < goes_on.left_bytes < 40 * MIB, "40 MiB a second, over a link of 100"
    assert goes_on.number > again_and_again.number


def test_one_that_writes_faster_than_the_link_is_foreseen_not_to_fit() -> None:
    last = foresee(ahead(100 * MIB, 200 * MIB), Wishes(1000))
    assert (last.left_bytes, last.number) == (MEMORY, 2)
    assert last.predicted_ms > 1000


def test_a_limit_on_what_is_sent_while_it_runs_holds_for_rounds_and_not_for_the_freeze() -> None:
    slow, fast = (foresee(ahead(MIB, 11 * MIB, rate), Wishes(850)) for rate in (10 * MIB, RATE))
    assert fast.predicted_ms <= 850 < slow.predicted_ms
    assert slow.left_bytes > 10 * fast.left_bytes
    assert slow.rate == RATE


def test_slowing_down_is_foreseen_as_far_as_it_is_allowed() -> None:
    writer = ahead(60 * MIB, 120 * MIB)
    assert foresee(writer, Wishes(1600, throttle=30)).predicted_ms > 1600
    slowed = foresee(writer, Wishes(1600, throttle=99))
    assert slowed.predicted_ms <= 1600
    assert slowed.throttled == 60


@given(soon=some.integers(0, MEMORY), later=some.integers(0, MEMORY), limit=some.integers(1, 20_000))
def test_whatever_was_seen_the_rounds_that_are_foreseen_end(soon: int, later: int, limit: int) -> None:
    last = foresee(ahead(soon, later), Wishes(limit))
    assert 0 <= last.left_bytes <= MEMORY
    assert last.number <= Bounds().rounds
    assert last.predicted_ms <= limit or last.number > 1
