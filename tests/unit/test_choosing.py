"""Which strategy a move gets, and what is said of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.base.errors import Refused
from agent.checkpoint import dirty
from agent.checkpoint.dirty import Written
from agent.doors.compression import Compressed
from agent.migration import choosing
from agent.migration.choosing import Foreseen, choose, memory_ms, predictions, shown, usual_rate
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.strategy.convergence import CRIU_RATE
from protocol.commands import Migrate
from protocol.errors import ErrorCode, Reason, Why
from protocol.peer import Against, Offer, Probed
from protocol.reasons import against
from protocol.status import Phase
from tests.unit import moves

MIB = 1 << 20
GIGABIT = Probed(rate=118 * MIB)


def request(**fields: object) -> Migrate:
    return Migrate.model_validate({"id": "c-1", "container": "web", "to": "beta", **fields})


def test_cold_grows_with_memory_and_with_a_slower_link_and_post_copy_does_not() -> None:
    cold = [memory_ms("cold", size * MIB, 118 * MIB) for size in (64, 1024)]
    assert cold[1] - cold[0] > 8000
    assert memory_ms("cold", 64 * MIB, 10 * MIB) > 6000
    assert memory_ms("postcopy", 64 * MIB, 10 * MIB) == memory_ms("postcopy", 4096 * MIB, 118 * MIB) == 0


def test_what_post_copy_sends_at_once_counts_as_it_does_by_cold() -> None:
    some = memory_ms("postcopy", 1024 * MIB, 118 * MIB, at_once=64 * MIB)
    assert some == memory_ms("cold", 64 * MIB, 118 * MIB)
    assert memory_ms("cold", 1024 * MIB, 118 * MIB, at_once=64 * MIB) == memory_ms("cold", 1024 * MIB, 118 * MIB)
    with pytest.raises(Refused, match="postcopy would take"):
        choose(request(max_blackout_ms=1000, allow_postcopy=True), 1024 * MIB, GIGABIT, at_once=1024 * MIB)
    known: dict[str, float] = {"postcopy": 200}
    found = predictions(64 * MIB, 118 * MIB, known, at_once=MIB, precopy=False, postcopy=True)
    assert found["postcopy"] == 200 + memory_ms("cold", MIB, 118 * MIB)


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


LITTLE = Foreseen(by_memory=300, left=2 * MIB)
MUCH = Foreseen(by_memory=5000, left=512 * MIB)
NONE = Foreseen("its kernel does not mark what is written")


@pytest.mark.parametrize(
    ("limit", "postcopy", "foreseen", "strategy"),
    [
        (20_000, True, LITTLE, "cold"),
        (1000, True, LITTLE, "precopy"),
        (1000, False, LITTLE, "precopy"),
        (1000, True, MUCH, "postcopy"),
        (1000, True, NONE, "postcopy"),
        (1000, True, None, "postcopy"),
        (6000, True, MUCH, "precopy"),
        (None, True, LITTLE, "cold"),
    ],
)
def test_auto_goes_from_the_safest_on(
    limit: int | None, postcopy: bool, foreseen: Foreseen | None, strategy: str
) -> None:
    wanted = request(max_blackout_ms=limit, allow_postcopy=postcopy)
    choice = choose(wanted, 1024 * MIB, GIGABIT, foreseen=foreseen)
    assert choice.strategy == strategy
    assert ("cold would take" in choice.reason) is (strategy != "cold")
    assert ("precopy would take" in choice.reason) is (strategy == "postcopy" and foreseen is MUCH)
    assert (f"within {limit} ms" in choice.reason) is (limit is not None)


def test_what_auto_has_foreseen_of_pre_copy_is_its_prediction() -> None:
    choice = choose(request(max_blackout_ms=1000), 1024 * MIB, GIGABIT, {"precopy": 200}, LITTLE)
    assert (choice.predicted_ms, choice.memory_ms) == (500, 300)
    assert "500 ms predicted, 1024 MiB at 118 MiB/s, 2.0 left to freeze" in choice.reason


@pytest.mark.parametrize(
    ("fields", "foreseen", "said", "hints"),
    [
        ({}, MUCH, "cold would take 10", ["--throttle", "--allow-postcopy"]),
        ({}, MUCH, "precopy would take 5500 ms", ["--throttle"]),
        ({"throttle": 50}, MUCH, "precopy would take 5500 ms", ["--allow-postcopy"]),
        ({}, NONE, "cold would take 10", ["pre-copy can't be had: its kernel does not mark", "--allow-postcopy"]),
    ],
)
def test_where_nothing_fits_all_that_was_weighed_is_said(
    fields: dict[str, object], foreseen: Foreseen, said: str, hints: list[str]
) -> None:
    with pytest.raises(Refused) as refused:
        choose(request(**({"max_blackout_ms": 1000} | fields)), 1024 * MIB, GIGABIT, foreseen=foreseen)
    assert refused.value.code is ErrorCode.BLACKOUT_TOO_LONG
    assert said in refused.value.message
    assert all(hint in refused.value.hint for hint in hints)
    assert ("--throttle" in refused.value.hint) is (foreseen is MUCH and not fields)


class Peer:
    """Over a link of 118 MiB/s; it is asked about the container only where that may matter."""

    name = "beta"
    compresses = False
    compressed = Compressed()

    def __init__(self, against: tuple[Reason, ...] = ()) -> None:
        self.against, self.asked = against, 0

    async def probe(self, migration: str) -> Probed:
        return GIGABIT

    async def check(self, migration: str, offers: Sequence[Offer]) -> tuple[Against, ...]:
        self.asked += 1
        return tuple(Against(precopy=self.against) for _ in offers)


class Way:
    """What `find_way` makes of a container of 1 GiB that writes so much in half a second."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int = MIB) -> None:
        self.run = Run(Journal(tmp_path / "unused"), Run.entry("m-1", Role.SOURCE, "web", "beta", {}))
        self.peer, self.watched, self.written = Peer(), 0, written
        self.subject = replace(moves.subject(tmp_path, 0), memory_bytes=1024 * MIB)
        monkeypatch.setattr(dirty, "watch", self.watch)
        monkeypatch.setattr(choosing, "shown", self.shown)

    async def watch(self, pid: int, tasks: object) -> Written:
        self.watched += 1
        return Written(self.written, 0.5, 2 * self.written, 1.0)

    async def shown(self, journal: object) -> dict[str, float]:
        return {}

    async def find(self, **fields: object) -> str:
        wanted, host = request(compress="none", **fields), SimpleNamespace(journal=None)
        await choosing.find_way(self.run, cast("Any", host), wanted, self.subject, cast("Any", self.peer))
        return self.run.strategy


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Way:
    return Way(tmp_path, monkeypatch)


async def test_auto_looks_at_what_is_written_and_takes_pre_copy_where_that_fits(way: Way) -> None:
    assert await way.find(max_blackout_ms=2000) == "precopy"
    assert (way.peer.asked, way.watched) == (1, 1)
    assert 1300 < way.run.figures["predicted_ms"] < 2000
    assert way.run.figures["fixed_ms"] == pytest.approx(500)


@pytest.mark.parametrize(
    ("fields", "strategy"),
    [
        ({}, "cold"),
        ({"max_blackout_ms": 60_000}, "cold"),
        ({"strategy": "precopy", "max_blackout_ms": 100}, "precopy"),
        ({"strategy": "postcopy", "max_blackout_ms": 1000}, "postcopy"),
    ],
)
async def test_nobody_is_looked_at_where_it_changes_nothing(way: Way, fields: dict[str, object], strategy: str) -> None:
    assert await way.find(**fields) == strategy
    assert (way.peer.asked, way.watched) == (0, 0)


async def test_auto_takes_no_pre_copy_where_either_side_can_not(way: Way) -> None:
    way.peer.against = (against(Why.NO_MEMORY, "2400 MiB of memory are needed, 12 MiB are free"),)
    with pytest.raises(Refused) as refused:
        await way.find(max_blackout_ms=2000)
    assert "pre-copy can't be had: 2400 MiB of memory are needed, 12 MiB are free on beta" in refused.value.hint
    assert await way.find(max_blackout_ms=2000, allow_postcopy=True) == "postcopy"
    way.subject = replace(way.subject, against_precopy=(against(Why.NO_PRECOPY, "no marks"),))
    assert await way.find(max_blackout_ms=2000, allow_postcopy=True) == "postcopy"
    assert way.peer.asked == 2, "it needs no answer where this side says no"
    assert way.watched == 0


async def test_what_writes_faster_than_the_link_is_refused_before_anything_is_begun(way: Way) -> None:
    way.written = 60 * MIB
    with pytest.raises(Refused, match="precopy would take"):
        await way.find(max_blackout_ms=4000)
    assert await way.find(max_blackout_ms=4000, throttle=90) == "precopy"
    assert await way.find(max_blackout_ms=4000, allow_postcopy=True) == "postcopy"


async def test_a_limit_on_its_bandwidth_counts_for_the_rounds(way: Way) -> None:
    way.written = 10 * MIB
    assert await way.find(max_blackout_ms=2000) == "precopy"
    way.run.bandwidth.change(10 * MIB)
    with pytest.raises(Refused, match="precopy would take"):
        await way.find(max_blackout_ms=2000)


async def test_a_rehearsal_is_cold_whatever_would_be_taken(way: Way) -> None:
    assert await way.find(max_blackout_ms=2000, rehearse=True) == "cold"
    assert 1300 < way.run.figures["predicted_ms"] < 2000


def test_predictions_are_of_what_can_be_had() -> None:
    known: dict[str, float] = {"cold": 100}
    found = predictions(64 * MIB, 118 * MIB, known, precopy=True, postcopy=True)
    assert list(found) == ["cold", "precopy", "postcopy"]
    assert found["cold"] == 100 + memory_ms("cold", 64 * MIB, 118 * MIB)
    assert found["precopy"] == 500 + memory_ms("precopy", 64 * MIB, 118 * MIB)
    assert list(predictions(64 * MIB, 118 * MIB, known, precopy=False, postcopy=False)) == ["cold"]


def test_pre_copy_by_name_shows_by_its_rounds_what_it_can_keep_to() -> None:
    choice = choose(request(strategy="precopy", max_blackout_ms=100), 1024 * MIB, GIGABIT)
    assert choice.strategy == "precopy"
    assert "within" not in choice.reason


def test_pre_copy_waits_for_less_of_the_memory_and_its_target_still_reads_all_of_it() -> None:
    cold, warm = (memory_ms(name, 1024 * MIB, 118 * MIB) for name in ("cold", "precopy"))
    assert warm < cold / 3
    assert warm > memory_ms("precopy", 64 * MIB, 118 * MIB) + 500


@pytest.mark.parametrize(("seen", "least"), [([0], 0), ([8, 0], 0), ([8, 8, 4, 8, 8], 4)])
async def test_what_is_not_so_at_every_look_is_not_expected(
    seen: list[int], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(seen)
    monkeypatch.setattr(choosing.stacks, "dumped_at_once", lambda pids: next(looks))
    assert await choosing.always_at_once([1]) == least
    assert not list(looks)


@pytest.mark.parametrize(
    ("lazy", "expected", "now", "follows"),
    [(True, 0, 0, True), (True, 0, 8, False), (True, 8, 8, True), (False, 0, 8, True)],
)
def test_a_moment_is_good_in_which_as_much_follows_as_is_expected(
    way: Way, monkeypatch: pytest.MonkeyPatch, *, lazy: bool, expected: int, now: int, follows: bool
) -> None:
    monkeypatch.setattr(choosing.stacks, "dumped_at_once", lambda pids: now)
    way.run.figures["at_once"] = expected
    subject = replace(way.subject, offer=way.subject.offer.model_copy(update={"lazy": lazy}))
    assert choosing.memory_follows(way.run, subject) is follows
