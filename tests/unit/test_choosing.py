"""Which strategy a move gets, and what is said of it."""

import pytest

from agent.base.errors import Refused
from agent.migration.choosing import choose, predicted_ms
from protocol.commands import Migrate
from protocol.errors import ErrorCode
from protocol.peer import Probed

MIB = 1 << 20
GIGABIT = Probed(rate=118 * MIB)


def request(**fields: object) -> Migrate:
    return Migrate.model_validate({"id": "c-1", "container": "web", "to": "beta", **fields})


def test_cold_grows_with_memory_and_with_a_slower_link_and_post_copy_does_not() -> None:
    cold = [predicted_ms("cold", size * MIB, 118 * MIB) for size in (64, 1024)]
    assert cold[1] - cold[0] > 8000
    assert predicted_ms("cold", 64 * MIB, 10 * MIB) > 6000
    assert predicted_ms("postcopy", 64 * MIB, 10 * MIB) == predicted_ms("postcopy", 4096 * MIB, 118 * MIB)


@pytest.mark.parametrize("allowed", [False, True])
def test_auto_takes_the_safest_where_nothing_is_wanted_of_the_blackout(allowed: bool) -> None:
    choice = choose(request(allow_postcopy=allowed), 4096 * MIB, GIGABIT)
    assert choice.strategy == "cold"
    assert "the safest" in choice.reason
    assert "4096 MiB at 118 MiB/s" in choice.reason


def test_auto_takes_post_copy_where_it_may_and_cold_would_take_too_long() -> None:
    choice = choose(request(max_blackout_ms=1000, allow_postcopy=True), 1024 * MIB, GIGABIT)
    assert choice.strategy == "postcopy"
    assert "cold would take" in choice.reason
    assert choice.predicted_ms < 1000
    assert choose(request(max_blackout_ms=1000, allow_postcopy=True), MIB, GIGABIT).strategy == "cold"


@pytest.mark.parametrize(
    ("fields", "link", "hint"),
    [
        ({}, GIGABIT, "--allow-postcopy"),
        ({"strategy": "cold"}, GIGABIT, "allow a longer one"),
        ({"allow_postcopy": True, "max_blackout_ms": 10}, GIGABIT, "allow a longer one"),
        ({"allow_postcopy": True}, Probed(rate=118 * MIB, against_postcopy="no userfaultfd"), "no userfaultfd"),
    ],
)
def test_what_can_not_keep_to_its_limit_is_refused_and_told_what_helps(
    fields: dict[str, object], link: Probed, hint: str
) -> None:
    with pytest.raises(Refused, match="can't be kept to: cold would take") as refused:
        choose(request(**({"max_blackout_ms": 1000} | fields)), 1024 * MIB, link)
    assert refused.value.code is ErrorCode.BLACKOUT_TOO_LONG
    assert hint in refused.value.hint


def test_what_is_asked_for_by_name_is_taken() -> None:
    assert choose(request(strategy="postcopy"), MIB, GIGABIT).strategy == "postcopy"
    assert choose(request(strategy="cold"), 4096 * MIB, GIGABIT).strategy == "cold"
