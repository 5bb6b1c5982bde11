"""A host after its boot, or after a shutdown that was called off: who is started, in which order, and nobody twice."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.base.errors import DockerFailed
from agent.migration import kept
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.runtime import asleep
from agent.shutdown import hibernate, host_down
from tests.unit.host_down_room import Room, rebooted, room

__all__ = ["rebooted", "room"]  # fixtures


async def test_one_that_can_not_sleep_is_stopped_and_is_no_sleeper_at_boot(room: Room) -> None:
    room.add("bad")
    room.sleepers.fails.add("bad")
    await room.agent().begin(60, "a test")
    assert room.result() == "bad: not hibernated, stopped"
    assert room.written() == {"bad": "stop"}


async def test_after_the_boot_each_is_started_once_and_after_those_that_it_depends_on(
    room: Room, rebooted: Callable[[], None]
) -> None:
    room.add("web", project="shop", service="web", depends_on="db:service_started:false")
    room.add("db", project="shop", service="db")
    await room.agent().begin(60, "a test")
    room.docker.did.clear()
    rebooted()
    await room.agent().boot()
    await room.agent().boot()
    assert room.docker.did == [("start", "db"), ("start", "web")]
    assert not (room.state / host_down.FILE).exists()


async def test_after_the_boot_one_that_has_to_be_healthy_is_waited_for(
    room: Room, rebooted: Callable[[], None]
) -> None:
    room.add("web", project="shop", service="web", depends_on="db:service_healthy:false")
    db = room.add("db", project="shop", service="db")
    await room.agent().begin(60, "a test")
    room.docker.did.clear()
    room.docker.health = "starting"
    rebooted()
    booting = asyncio.create_task(room.agent().boot())
    async with asyncio.timeout(10):
        while not room.docker.did:
            await asyncio.sleep(0)
        room.docker.probes(db, "starting")
        while not room.docker.probed.empty():
            await asyncio.sleep(0)
        assert room.docker.did == [("start", "db")], "its probes have not said so yet"
        room.docker.probes(db, "healthy")
        await booting
    assert room.docker.did == [("start", "db"), ("start", "web")]


async def test_an_agent_that_is_restarted_in_between_starts_nothing(room: Room) -> None:
    room.add("one")
    await room.agent().begin(60, "a test")
    room.docker.did.clear()
    await room.agent().boot()
    assert room.docker.did == []


async def test_a_shutdown_that_is_called_off_starts_them_again(room: Room) -> None:
    room.add("one")
    agent = room.agent()
    agent.begin(60, "a test")
    await agent.called_off()
    assert room.docker.did[-1] == ("start", "one")


async def test_a_shutdown_in_the_middle_of_the_boot_forgets_nobody(room: Room, rebooted: Callable[[], None]) -> None:
    for name in ("one", "two"):
        room.add(name, service=name)
    await room.agent().begin(60, "a test")
    rebooted()
    started, start = asyncio.Event(), room.docker.start

    async def first_only(ref: str) -> None:
        if started.is_set():
            await asyncio.Event().wait()
        started.set()
        await start(ref)

    room.docker.start = first_only  # type: ignore[method-assign]
    agent = room.agent()
    boot = asyncio.create_task(agent.boot())
    async with asyncio.timeout(5):
        await started.wait()
        while len(room.written()) > 1:
            await asyncio.sleep(0)
        await agent.begin(60, "again")
        await boot
    assert set(room.written()) == {"one", "two"}, "one sleeps again, and the other one still does"
    assert agent.left > 0


async def test_a_shutdown_before_the_first_look_at_docker_forgets_nobody(
    room: Room, rebooted: Callable[[], None]
) -> None:
    room.add("one")
    await room.agent().begin(60, "a test")
    rebooted()
    room.sleepers.known.clear()
    room.add("two")
    await room.agent().begin(60, "again")
    assert set(room.written()) == {"one", "two"}


async def test_one_that_ran_on_has_its_own_policy_when_the_shutdown_is_called_off(room: Room) -> None:
    room.add("one", harmless=False)
    room.sleepers.fails.add("one")
    agent = room.agent()
    await agent.begin(60, "a test")
    assert room.docker.did[-1] != ("policy always", "one")
    await agent.called_off()
    assert room.docker.did[-1] == ("policy always", "one")
    assert kept.recall(room.state, "one" * 8) is None
    assert not (room.state / host_down.FILE).exists()


async def test_a_shutdown_after_one_that_was_called_off_is_one(room: Room) -> None:
    room.add("one")
    agent = room.agent()
    agent.begin(60, "a test")
    staying = agent.called_off()
    await agent.begin(60, "again")
    await asyncio.wait({staying})
    assert ("start", "one") not in room.docker.did
    assert room.written() == {"one": "hibernate"}


async def test_what_a_move_has_is_not_started_at_boot(room: Room, rebooted: Callable[[], None]) -> None:
    one = room.add("one")
    await room.agent().begin(60, "a test")
    room.open = [Run.entry("m-1", Role.SOURCE, "one", "node-b", {"container_id": one})]
    rebooted()
    await room.agent().boot()
    assert ("start", "one") not in room.docker.did
    assert not (room.state / host_down.FILE).exists()


async def test_a_dockerd_that_is_away_in_the_middle_of_the_boot_costs_nobody_his_start(
    room: Room, rebooted: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        room.add(name, service=name)
    await room.agent().begin(60, "a test")
    rebooted()
    start, refused = room.docker.start, [1]

    async def away(ref: str) -> None:
        if refused:
            refused.pop()
            raise DockerFailed("dockerd does not answer")
        await start(ref)

    async def at_once(_: float, sleep: Any = asyncio.sleep) -> None:
        await sleep(0)

    monkeypatch.setattr(room.docker, "start", away)
    monkeypatch.setattr("agent.base.tasks.asyncio.sleep", at_once)
    await room.agent().boot()
    assert sorted(name for what, name in room.docker.did if what == "start") == ["one", "two"]
    assert "boot-start-failed" not in [one.kind for one in room.sleepers.said]


async def test_one_that_was_stopped_but_sleeps_all_the_same_is_woken_at_boot(
    room: Room, rebooted: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time was over, and its images were complete nevertheless."""
    room.add("one")
    monkeypatch.setattr(hibernate, "ROOT", room.state)
    room.sleepers.fails.add("one")
    room.docker.containers = {
        each: replace(one, restart_policy={"Name": "no"}) for each, one in room.docker.containers.items()
    }
    room.sleepers.known = {
        each: (replace(one, restart_policy={"Name": "no"}), wish) for each, (one, wish) in room.sleepers.known.items()
    }
    await room.agent().begin(60, "a test")
    assert room.written() == {"one": "stop"}
    (room.state / ("one" * 8)).mkdir()
    (room.state / ("one" * 8) / asleep.RECORD).touch()
    rebooted()
    await room.agent().boot()
    assert room.docker.did[-1] == ("start", "one")
