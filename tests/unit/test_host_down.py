"""A host that goes down, between a pretended Docker and pretended sleepers: what is done, noted, and kept waiting."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.base import durable
from agent.doors import systemd
from agent.migration import kept
from agent.runtime import asleep
from agent.shutdown import host_down
from protocol.commands import ShutdownNotice
from tests.unit.host_down_room import MB, Room, rebooted, room

__all__ = ["rebooted", "room"]  # fixtures


async def test_each_has_no_policy_before_it_sleeps_and_that_is_written_down(room: Room) -> None:
    one = room.add("one")
    await room.agent().begin(60, "a test")
    assert room.docker.did == [("policy no", "one"), ("sleep", "one")]
    assert room.result() == "one: hibernated"
    assert room.written() == {"one": "hibernate"}
    found = kept.recall(room.state, one)
    assert found is not None
    assert found.policy == {"Name": "always"}


async def test_without_time_the_usual_stop_signal_is_left_to_docker(room: Room) -> None:
    room.add("urgent")
    room.add("usual", harmless=False)
    await room.agent().begin(1, "a test")
    assert sorted(room.result().split("; ")) == ["urgent: stopped", "usual: left to Docker"]
    assert ("signal", "usual") not in room.docker.did
    assert ("policy no", "usual") not in room.docker.did


async def test_what_could_not_be_moved_away_sleeps_here(room: Room) -> None:
    stays = room.add("stays", "evacuate")
    room.add("goes", "evacuate")

    class Evacuates:
        def begins(self) -> None: ...

        async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
            assert len(containers) == 2
            return {stays: "no host has room"}

    room.evacuate = Evacuates()
    await room.agent().begin(60, "a test")
    assert sorted(room.result().split("; ")) == ["goes: evacuated", "stays: hibernated"]
    assert room.written() == {"stays": "hibernate"}


async def test_a_second_word_does_not_begin_it_again_but_may_shorten_the_time(room: Room) -> None:
    room.add("one")
    agent = room.agent()
    assert agent.begin(60, "logind") is agent.begin(30, "a notice")
    assert agent.left <= 30
    await agent.begin(90, "systemd")
    assert [one.kind for one in room.sleepers.said] == ["host-shutdown-planned", "host-shutdown-ready"]


async def test_one_that_is_removed_meanwhile_costs_no_other_its_memory(room: Room) -> None:
    for name in ("one", "two"):
        room.add(name)
    agent, begin = room.agent(), room.sleepers.begin

    def removed(container_id: str, reason: str) -> "asyncio.Task[bool]":
        room.sleepers.known.pop("two" * 8, None)
        room.docker.containers.pop("two" * 8, None)
        return begin(container_id, reason)

    room.sleepers.begin = removed  # type: ignore[method-assign]
    await agent.begin(60, "a test")
    assert ("sleep", "one") in room.docker.did
    assert "two: gone" in room.result()


async def test_a_disk_that_is_full_ends_no_rescue(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        room.add(name)
    write, left = durable.write, [1]

    def full(path: Path, text: str) -> None:
        if path.name == host_down.FILE and left:
            left.pop()
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(durable, "write", full)
    await room.agent().begin(60, "a test")
    assert [what for what, _ in room.docker.did].count("sleep") == 1, "the other one sleeps"
    assert "not hibernated" in room.result()


async def test_a_move_leaves_the_time_to_hibernate(room: Room) -> None:
    room.add("one", "evacuate", 1000 * MB)
    given: list[float] = []

    class Late:
        def begins(self) -> None: ...

        async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
            given.append(seconds)
            return dict.fromkeys(containers, "no host takes it")

    room.evacuate = Late()
    await room.agent().begin(60, "a test")
    [seconds] = given
    assert 30 <= seconds <= 60 - 1000 * MB / host_down.DISK
    assert "one: hibernated" in room.result()


async def test_it_takes_no_containers_from_the_first_moment_on_also_where_none_is_to_be_moved(room: Room) -> None:
    room.add("one")

    class Evacuates:
        def begins(self) -> None:
            room.docker.did.append(("cordon", ""))

    room.evacuate = Evacuates()
    await room.agent().begin(60, "a test")
    assert room.docker.did[0] == ("cordon", "")


async def test_one_that_a_move_does_not_let_go_of_is_left_to_that_and_keeps_nobody_waiting(room: Room) -> None:
    """Nothing is written down of it: at boot, too, the move alone decides where it runs."""
    for name, size in (("ends", 1), ("moves", 2), ("stays", 3)):
        room.add(name, size=size * MB)
    room.sleepers.busy = {"moves" * 8: False, "ends" * 8: True}
    await room.agent().begin(60, "a test")
    assert [name for what, name in room.docker.did if what == "sleep"] == ["stays", "ends"]
    assert "moves: left to the move" in room.result()
    assert set(room.written()) == {"stays", "ends"}


async def test_an_agent_that_is_stopped_in_the_middle_of_a_notice_begins_nothing_more(room: Room) -> None:
    for name in ("one", "two"):
        room.add(name)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    def begin(container_id: str, reason: str) -> "asyncio.Task[bool]":
        async def sleep() -> bool:
            room.docker.did.append(("sleep", room.docker.containers[container_id].name))
            begun.set()
            return await goes_on.wait()

        return asyncio.create_task(sleep())

    room.sleepers.begin = begin  # type: ignore[method-assign]
    agent = room.agent()
    agent.begin(60, "a notice")
    await begun.wait()
    await agent.close()
    goes_on.set()
    assert [what for what, _ in room.docker.did].count("sleep") == 1
    assert len(room.written()) == 1


async def ends_in_the_middle(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is told to bring all to safety within 60 s, and ends as it begins."""
    begun = asyncio.Event()

    def hangs(container_id: str, reason: str) -> "asyncio.Task[bool]":
        begun.set()
        return asyncio.create_task(asyncio.Event().wait())

    monkeypatch.setattr(room.sleepers, "begin", hangs)
    agent = room.agent()
    agent.heard(ShutdownNotice(id="c-1", seconds=60))
    await begun.wait()
    await agent.close()


async def test_a_notice_is_taken_up_by_the_next_agent_with_what_is_left_of_its_time(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("one", 1), ("two", 2)):
        room.add(name, size=size * MB)
    begin = room.sleepers.begin
    await ends_in_the_middle(room, monkeypatch)
    monkeypatch.setattr(room.sleepers, "begin", begin)
    again = room.agent()
    await again.boot()
    assert 50 < again.left <= 60
    await again.begin(60, "the same")
    assert sorted(room.result().split("; ")) == ["one: hibernated", "two: hibernated"]
    third = room.agent()
    await third.boot()
    assert [one.kind for one in room.sleepers.said].count("host-shutdown-planned") == 2, "it was done"


async def test_a_notice_whose_time_is_over_or_that_was_called_off_is_taken_up_by_nobody(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.add("one")
    await ends_in_the_middle(room, monkeypatch)
    later = time.monotonic() + 61
    with monkeypatch.context() as then:
        then.setattr(host_down.time, "monotonic", lambda: later)
        await room.agent().boot()
    for _ in range(2):
        await room.agent().boot()
    assert [one.kind for one in room.sleepers.said] == ["host-shutdown-planned"]
    assert room.written() == {"one": "hibernate"}, "what was done is kept, to be undone"


async def test_what_its_moves_have_shown_of_the_link_is_planned_with(room: Room) -> None:
    room.add("goes", "evacuate", 100 * MB)

    class Evacuates:
        def begins(self) -> None: ...

        async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
            return {}

    room.evacuate = Evacuates()
    room.rates = [1e6, 2e6, 80e6]
    await room.agent().begin(60, "a test")
    assert room.result() == "goes: evacuated"
    room.rates = [1e6, 1.5e6, 80e6]
    room.sleepers.said.clear()
    await room.agent().begin(60, "a test")
    assert room.result() == "goes: hibernated", "70 s would be too long"


def test_images_that_get_their_name_while_they_are_measured_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asleep, "ROOT", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "pages-1.img").write_bytes(b"x" * 10)
    assert host_down._bytes_asleep() == 20
    scandir = os.scandir

    def gone(path: str) -> Any:
        if "one" in str(path) and str(path).endswith("images"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(host_down.os, "scandir", gone)
    assert host_down._bytes_asleep() == 10


async def test_systemd_is_asked_for_time_as_long_as_it_gets_on(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    slept: list[int] = []
    monkeypatch.setattr(systemd, "notify", lambda *lines: asked.extend(lines))
    monkeypatch.setattr(host_down, "_bytes_asleep", lambda: min(len(slept), 3))
    agent = room.agent()

    async def tick(_: float) -> None:
        slept.append(1)
        if len(slept) == 10:
            raise asyncio.CancelledError

    monkeypatch.setattr("agent.shutdown.host_down.asyncio.sleep", tick)
    with contextlib.suppress(asyncio.CancelledError):
        await agent._ask_for_time()
    assert asked == [host_down.MORE_TIME] * 4, "not once more when nothing moves"
