"""Which container goes where when a host is to be empty: no target is overbooked, and each one is told why."""

import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from agent.shutdown import labels, planner
from agent.shutdown.places import Leaving, Origin, Place
from agent.shutdown.planner import Placement, Plan, Wanted
from protocol.errors import ErrorCode, Reason
from protocol.status import Engine, HostStatus

MIB = 1 << 20
ENGINE = Engine(docker="28.5.2", criu="4.2.1", storage_driver="overlay2", cgroup_version=2, runtime_registered=True)


def host(name: str, free_mib: int = 8192, engine: Engine | None = ENGINE, **more: Any) -> HostStatus:
    return HostStatus(
        **{
            "host": name,
            "online": True,
            "engine": engine,
            "machine": "x86_64",
            "cpus": 4,
            "memory_free_bytes": free_mib * MIB,
            **more,
        }
    )


def place(name: str, free_mib: int = 8192, *, engine: Engine | None = ENGINE, rate: float = 1e9, **more: Any) -> Place:
    return Place(host(name, free_mib, engine, **more), rate=rate)


def one(name: str, mib: int = 100, **more: Any) -> Leaving:
    identity = f"{sum(name.encode()):064x}"
    return Leaving(**{"id": identity, "name": name, "memory_bytes": mib * MIB, "room_bytes": 64 * MIB, **more})


def origin(*others: Place) -> Origin:
    return Origin("host-a", ENGINE, "x86_64", others)


def found(plan: Plan, name: str) -> Placement:
    [it] = [each for each in plan.placements if each.one.name == name]
    return it


def why_not(plan: Plan, name: str, target: str) -> str:
    [no] = [each for each in found(plan, name).against if each.host == target]
    return "; ".join(reason.message for reason in no.reasons)


def code_of(plan: Plan, name: str) -> ErrorCode | None:
    left = found(plan, name).left
    return left.code if left else None


# --- what is decided


def test_the_most_memory_left_decides_and_what_was_given_counts() -> None:
    plan = planner.plan(
        origin(place("host-b", 1000), place("host-c", 900)), [one("aa"), one("bb"), one("cc")], Wanted()
    )
    assert [each.to for each in plan.placements] == ["host-b", "host-c", "host-b"]
    assert "stay free there, the most" in found(plan, "aa").why
    assert "fewer than on host-b" in why_not(plan, "aa", "host-c")


def test_priority_comes_first_then_the_smaller_ones() -> None:
    plan = planner.plan(
        origin(place("host-b")),
        [one("large", 900), one("small", 10), one("dear", 2000, priority=5), one("last", 1, priority=-1)],
        Wanted(parallel=1),
    )
    assert [each.one.name for each in plan.placements] == ["dear", "small", "large", "last"]
    assert [each.begins_s for each in plan.placements] == sorted(each.begins_s for each in plan.placements)


def test_the_label_s_first_host_that_can_take_it_is_taken() -> None:
    others = (place("host-b"), place("host-c"), place("host-d", online=False))
    plan = planner.plan(origin(*others), [one("web", targets=("host-d", "host-c"))], Wanted())
    assert found(plan, "web").to == "host-c"
    assert "number 2 of the label transship.targets" in found(plan, "web").why
    assert "names only host-d, host-c" in why_not(plan, "web", "host-b")
    assert why_not(plan, "web", "host-d") == "it is offline"


def test_only_the_hosts_that_were_asked_for_are_used() -> None:
    plan = planner.plan(
        origin(place("host-b"), place("host-c", 10000)), [one("web")], Wanted(only=("host-b", "nowhere"))
    )
    assert found(plan, "web").to == "host-b"
    assert "not among the hosts asked for" in why_not(plan, "web", "host-c")
    assert why_not(plan, "web", "nowhere") == "no such host is known"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"online": False}, ErrorCode.HOST_OFFLINE),
        ({"cordoned": True}, ErrorCode.HOST_CORDONED),
        ({"engine": None}, ErrorCode.DOCKER_UNAVAILABLE),
        ({"engine": ENGINE.model_copy(update={"criu": ""})}, ErrorCode.CRIU_UNUSABLE),
        ({"engine": ENGINE.model_copy(update={"criu": "4.1.1"})}, ErrorCode.CRIU_UNUSABLE),
        ({"engine": ENGINE.model_copy(update={"runtime_registered": False})}, ErrorCode.INCOMPATIBLE),
        ({"engine": ENGINE.model_copy(update={"cgroup_version": 1})}, ErrorCode.INCOMPATIBLE),
        ({"engine": ENGINE.model_copy(update={"userns_remap": True})}, ErrorCode.INCOMPATIBLE),
        ({"engine": ENGINE.model_copy(update={"storage_driver": "btrfs"})}, ErrorCode.INCOMPATIBLE),
        ({"machine": "aarch64"}, ErrorCode.INCOMPATIBLE),
        ({"free_mib": 150}, ErrorCode.NO_MEMORY),
        ({"memory_reserve_bytes": 8100 * MIB}, ErrorCode.NO_MEMORY),
    ],
)
def test_a_host_that_can_t_take_it_is_left_out_with_its_reason(wrong: dict[str, Any], code: ErrorCode) -> None:
    alone = planner.plan(origin(place("host-b", **wrong)), [one("web")], Wanted())
    assert code_of(alone, "web") is code
    two = planner.plan(origin(place("host-b", **wrong), place("host-c", 500)), [one("web")], Wanted())
    assert found(two, "web").to == "host-c"
    [no] = found(two, "web").against
    assert (no.host, no.reasons[0].code) == ("host-b", code)


def test_a_place_that_is_not_allowed_or_not_reached_is_left_out() -> None:
    not_allowed, unreached = replace(place("host-b"), allowed=False), replace(place("host-c"), unreachable="no route")
    plan = planner.plan(origin(not_allowed, unreached), [one("web")], Wanted())
    assert code_of(plan, "web") is ErrorCode.NO_TARGET
    assert found(plan, "web").left is not None
    assert "host-b: no containers may be given to it; host-c: no route" in str(found(plan, "web").left)


@pytest.mark.parametrize(("needs", "word"), [({"cpus": 6.0}, "4 cores"), ({"confined": True}, "AppArmor")])
def test_what_the_container_itself_needs_decides_too(needs: dict[str, Any], word: str) -> None:
    plan = planner.plan(origin(place("host-b")), [one("web", **needs)], Wanted())
    assert code_of(plan, "web") is ErrorCode.INCOMPATIBLE
    assert word in why_not(plan, "web", "host-b")


def test_a_host_that_has_refused_it_is_not_asked_again() -> None:
    reason = Reason(code=ErrorCode.PORT_TAKEN, message="port 80 is taken")
    plan = planner.plan(
        origin(place("host-b"), place("host-c", 500)), [one("web").refused_by("host-b", reason)], Wanted()
    )
    assert found(plan, "web").to == "host-c"
    assert why_not(plan, "web", "host-b") == "port 80 is taken"


def test_what_stays_and_what_can_t_move_is_last_and_takes_no_room() -> None:
    tty = Reason(code=ErrorCode.NOT_MIGRATABLE, message="it has a terminal")
    plan = planner.plan(
        origin(place("host-b", 300)),
        [one("tty", 200, against=(tty,)), one("stays", 200, goes=False), one("web", 200)],
        Wanted(),
    )
    assert [each.one.name for each in plan.going] == ["web"]
    assert found(plan, "tty").left == tty
    assert found(plan, "stays").left is None
    assert "it stays" in found(plan, "stays").why


def test_a_deadline_leaves_those_that_would_be_late_and_takes_those_that_fit() -> None:
    slow = place("host-b", rate=100e6)
    crowd = [one(f"small-{number}", 10) for number in range(3)] + [one("large", 4000)]
    plan = planner.plan(origin(slow), crowd, Wanted(parallel=2, seconds=12))
    assert {each.one.name for each in plan.going} == {"small-0", "small-1", "small-2"}
    assert code_of(plan, "large") is ErrorCode.TOO_LITTLE_TIME
    nothing = planner.plan(origin(slow), crowd, Wanted(parallel=2, seconds=0.5))
    assert not nothing.going
    assert {each.left.code for each in nothing.placements if each.left} == {ErrorCode.TOO_LITTLE_TIME}


def test_no_more_go_at_once_than_the_target_takes() -> None:
    busy = replace(place("host-b", migrations_limit=2), underway=1)
    plan = planner.plan(origin(busy), [one("aa"), one("bb"), one("cc")], Wanted(parallel=4))
    assert most_at_once(plan, "host-b") == 1
    assert max(each.ends_s for each in plan.going) >= 3 * planner.SETUP_SECONDS


# --- what is always so


@some.composite
def clusters(draw: Callable[..., Any]) -> tuple[Origin, list[Leaving], Wanted]:
    names = [f"host-{letter}" for letter in "bcde"[: draw(some.integers(0, 4))]]
    engines = [ENGINE, ENGINE, ENGINE.model_copy(update={"cgroup_version": 1}), None]
    others = tuple(
        Place(
            host(
                name,
                draw(some.integers(0, 4096)),
                draw(some.sampled_from(engines)),
                online=draw(some.booleans()) or draw(some.booleans()),
                cordoned=draw(some.sampled_from([False, False, True])),
                migrations_limit=draw(some.integers(0, 4)),
                memory_reserve_bytes=draw(some.sampled_from([0, 256 * MIB])),
            ),
            allowed=draw(some.sampled_from([True, True, False])),
            rate=draw(some.sampled_from([0.0, 10e6, 1e9])),
            promised_bytes=draw(some.sampled_from([0, 100 * MIB])),
            underway=draw(some.integers(0, 2)),
        )
        for name in names
    )
    somewhere = some.lists(some.sampled_from([*names, "nowhere"]), max_size=2, unique=True).map(tuple)
    no = Reason(code=ErrorCode.NOT_MIGRATABLE, message="it has a terminal")
    leaving = [
        Leaving(
            id=f"{number:064x}",
            name=f"box-{number}",
            memory_bytes=draw(some.integers(0, 1024)) * MIB,
            room_bytes=draw(some.integers(0, 512)) * MIB,
            files_bytes=draw(some.integers(0, 100)) * MIB,
            priority=draw(some.integers(-1, 1)),
            goes=draw(some.sampled_from([True, True, True, False])),
            targets=draw(somewhere),
            against=draw(some.sampled_from([(), (), (no,)])),
        )
        for number in range(draw(some.integers(0, 8)))
    ]
    seconds = draw(some.none() | some.floats(0, 60))
    return (
        Origin("host-a", ENGINE, "x86_64", others),
        leaving,
        Wanted(draw(somewhere), draw(some.integers(1, 4)), seconds),
    )


quick = settings(max_examples=60)


def most_at_once(plan: Plan, target: str) -> int:
    times = [(each.begins_s, each.ends_s) for each in plan.going if each.to == target]
    return max((sum(begin <= at < end for begin, end in times) for at, _ in times), default=0)


@quick
@given(clusters())
def test_no_target_is_given_more_than_it_has_free(drawn: tuple[Origin, list[Leaving], Wanted]) -> None:
    source, leaving, wanted = drawn
    plan = planner.plan(source, leaving, wanted)
    for target in source.others:
        given_to = [each for each in plan.going if each.to == target.name]
        free = target.status.memory_free_bytes - target.status.memory_reserve_bytes - target.promised_bytes
        if given_to:
            assert sum(each.one.memory_bytes for each in given_to) <= free
        for (
            each
        ) in given_to:  # at its beginning: all that is there by then or comes, and the images of who is on the way
            by_then = sum(other.one.memory_bytes for other in given_to if other.begins_s <= each.begins_s)
            under_way = [other.one.room_bytes for other in given_to if other.begins_s <= each.begins_s < other.ends_s]
            assert by_then + sum(under_way) <= free


@quick
@given(clusters())
def test_each_is_placed_once_or_told_why_not_and_why_not_elsewhere(drawn: tuple[Origin, list[Leaving], Wanted]) -> None:
    source, leaving, wanted = drawn
    plan = planner.plan(source, leaving, wanted)
    assert sorted(each.one.name for each in plan.placements) == sorted(each.name for each in leaving)
    for each in plan.placements:
        assert (each.to is None) == bool(each.left or not each.one.goes)
        assert each.why or each.left
        assert each.to is None or each.why
        assert all(no.reasons and all(reason.message for reason in no.reasons) for no in each.against)
        if each.one.goes and not each.one.against:
            told = {no.host for no in each.against} | ({each.to} if each.to else set())
            late = each.left is not None and each.left.code is ErrorCode.TOO_LITTLE_TIME
            missing = {target.name for target in source.others} - told
            assert len(missing) == int(late), (
                "every other host has its reason, and a late one would have had one target"
            )


@quick
@given(clusters())
def test_nobody_is_sent_where_it_may_not_go(drawn: tuple[Origin, list[Leaving], Wanted]) -> None:
    source, leaving, wanted = drawn
    by_name = {target.name: target for target in source.others}
    for each in planner.plan(source, leaving, wanted).going:
        assert each.to is not None
        target = by_name[each.to]
        assert target.allowed
        assert target.status.online
        assert not target.status.cordoned
        assert target.status.engine == ENGINE
        assert not each.one.targets or each.to in each.one.targets
        assert not wanted.only or each.to in wanted.only
        assert wanted.seconds is None or each.ends_s <= wanted.seconds


@quick
@given(clusters())
def test_no_more_are_under_way_than_wanted_and_taken(drawn: tuple[Origin, list[Leaving], Wanted]) -> None:
    source, leaving, wanted = drawn
    plan = planner.plan(source, leaving, wanted)
    times = [(each.begins_s, each.ends_s) for each in plan.going]
    for at, _ in times:
        assert sum(begin <= at < end for begin, end in times) <= wanted.parallel
    for target in source.others:
        assert most_at_once(plan, target.name) <= max(1, target.status.migrations_limit - target.underway)


@quick
@given(clusters(), some.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_in_which_things_are_told(
    drawn: tuple[Origin, list[Leaving], Wanted], shuffled: random.Random
) -> None:
    source, leaving, wanted = drawn
    others = list(source.others)
    again = list(leaving)
    shuffled.shuffle(others)
    shuffled.shuffle(again)
    assert planner.plan(replace(source, others=tuple(others)), again, wanted) == planner.plan(source, leaving, wanted)


@quick
@given(clusters())
def test_without_one_that_was_left_the_others_go_where_they_went(drawn: tuple[Origin, list[Leaving], Wanted]) -> None:
    source, leaving, wanted = drawn
    plan = planner.plan(source, leaving, wanted)
    going = [each.one for each in plan.going]
    again = planner.plan(source, going, wanted)
    assert [(each.one.name, each.to, each.begins_s) for each in again.placements] == [
        (each.one.name, each.to, each.begins_s) for each in plan.going
    ]


def test_rooms_of_those_on_the_way_at_once_are_what_counts() -> None:
    """Ten of 100 MiB with room for 64 MiB of images each: 1000 + 2 * 64, not 1640."""
    crowd = [one(f"box-{number}") for number in range(10)]
    assert len(planner.plan(origin(place("host-b", 1128)), crowd, Wanted(parallel=2)).going) == 10
    assert len(planner.plan(origin(place("host-b", 1127)), crowd, Wanted(parallel=2)).going) == 9
    assert sum(heapq.nlargest(2, [each.room_bytes for each in crowd])) == 128 * MIB


# --- labels


def test_labels_are_read_and_what_is_not_understood_is_said() -> None:
    wishes = labels.read(
        {"transship.targets": "host-b, Host_C,host-b", "transship.priority": "high", "transship.evacuate": "perhaps"}
    )
    assert wishes.targets == ("host-b",)
    assert (wishes.priority, wishes.goes) == (0, True)
    assert len(wishes.notes) == 3
    plain = labels.read({"transship.priority": "-3", "transship.evacuate": "No", "transship.return": "no"})
    assert (plain.priority, plain.goes, plain.returns, plain.notes) == (-3, False, False, ())
    assert labels.read({}) == labels.Wishes()
    by_itself = labels.read({"transship.return": " Auto "})
    assert (by_itself.returns, by_itself.returns_by_itself, by_itself.notes) == (True, True, ())


@given(
    some.dictionaries(some.sampled_from([labels.EVACUATE, labels.TARGETS, labels.PRIORITY, labels.RETURN]), some.text())
)
def test_no_label_whatever_breaks_anything(said: dict[str, str]) -> None:
    labels.read(said)
