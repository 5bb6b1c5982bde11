"""Which strategy a move gets, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.base.errors import Refused
from agent.migration.choosing import choose, memory_ms, shown, usual_rate
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.strategy.convergence import CRIU_RATE
from protocol.commands import Migrate
from protocol.errors import ErrorCode
from protocol.peer import Probed
from protocol.status import Phase

MIB = 1 << 20
GIGABIT = Probed(rate=118 * MIB)


def request(**fields: object) -> Migrate:
    return Migrate.model_validate({"id": "c-1", "container": "web", "to": "beta", **fields})


def test_cold_grows_with_memory_and_with_a_slower_link_and_post_copy_does_not() -> None:
    cold = [memory_ms("cold", size * MIB, 118 * MIB) for size in (64, 1024)]
    assert cold[1] - cold[0] > 8000
    assert memory_ms("cold", 64 * MIB, 10 * MIB) > 6000
    assert memory_ms("postcopy", 64 * MIB, 10 * MIB) == memory_ms("postcopy", 4096 * MIB, 118 * MIB) == 0


async def test_what_is_predicted_is_what_the_hosts_last_moves_have_shown(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.open()
    try:
        for number, blackout in enumerate([9000, 240, 260, 250, 300, 280, 900, 270]):
            entry = Run.entry(f"m-{number}", Role.SOURCE, "web", "beta", {"strategy": "postcopy"})
            run = Run(journal, replace(entry, started=f"2026-01-01T00:00:0{number}", phase=Phase.COMMITTED))
            run.figures |= {"blackout_ms": blackout, "by_memory": 10, "link_rate": (number + 1) * 10e6}
            await run.enter(Phase.RUNNING, **run.shown())
        fixed, rate = await shown(journal), await usual_rate(journal)
    finally:
        await journal.close()
    assert fixed == {"postcopy": 260}
    assert rate == pytest.approx(1 / (1 / 50e6 + 1 / CRIU_RATE)), "the link's, and what CRIU takes, too"
    choice = choose(request(strategy="postcopy"), MIB, GIGABIT, fixed)
    assert choice.predicted_ms == 260
    assert "260 ms predicted" in choice.reason
    assert choose(request(strategy="cold"), 64 * MIB, GIGABIT, fixed).predicted_ms > 500


def test_a_move_that_a_restarted_agent_has_seen_through_shows_nothing() -> None:
    run = Run(Journal(Path("unused")), Run.entry("m-1", Role.SOURCE, "web", "beta", {}))
    assert run.shown() == {}


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


def test_auto_leaves_pre_copy_to_who_asks_for_it() -> None:
    wanted = request(max_blackout_ms=3000, allow_postcopy=True)
    assert choose(wanted, 1024 * MIB, GIGABIT).strategy == "postcopy"


def test_pre_copy_by_name_shows_by_its_rounds_what_it_can_keep_to() -> None:
    choice = choose(request(strategy="precopy", max_blackout_ms=100), 1024 * MIB, GIGABIT)
    assert choice.strategy == "precopy"
    assert "within" not in choice.reason


def test_pre_copy_waits_for_less_of_the_memory_and_its_target_still_reads_all_of_it() -> None:
    cold, warm = (memory_ms(name, 1024 * MIB, 118 * MIB) for name in ("cold", "precopy"))
    assert warm < cold / 3
    assert warm > memory_ms("precopy", 64 * MIB, 118 * MIB) + 500
