"""The inventory before a pretended Docker: what is published follows what Docker shows, whatever the events do."""

import asyncio
import time

import pytest

from agent import inventory
from agent.base.errors import StepTimeout
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from protocol.status import Engine
from tests.unit.inventory_room import A, B, Room


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(inventory, "LONGEST_PAUSE", 0.02)


async def test_what_is_there_is_published_at_the_start() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "healthy"), B: ("db", "exited", "")}
    async with room.running():
        await room.told.until(lambda: len(room.told.containers) == 2)
    web = room.told.containers[A]
    assert (web.host, web.name, web.image, web.state, web.health) == ("host-a", "web", "busybox", "running", "healthy")
    assert room.told.engines[0] == Engine(docker="28.5.2")


@pytest.mark.parametrize(
    ("action", "after"),
    [
        ("start", ("web", "running", "")),
        ("die", ("web", "exited", "")),
        ("pause", ("web", "paused", "")),
        ("unpause", ("web", "running", "starting")),
        ("rename", ("www", "running", "")),
        ("health_status: unhealthy", ("web", "running", "unhealthy")),
        ("restart", ("web", "running", "none")),
    ],
)
async def test_an_event_makes_it_look_again(action: str, after: tuple[str, str, str]) -> None:
    room = Room()
    room.docker.containers = {A: ("before", "created", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        room.docker.containers[A] = after
        room.docker.tell(action, A)
        await room.told.until(lambda: room.told.containers[A].name != "before")
    found = room.told.containers[A]
    assert (found.name, found.state, found.health) == (after[0], after[1], after[2].removeprefix("none"))


async def test_a_network_event_is_about_its_container() -> None:
    room = Room()
    async with room.running():
        room.docker.containers = {A: ("web", "running", "")}
        room.docker.tell("connect", "n" * 64, kind="network", container=A, type="bridge")
        await room.told.until(lambda: room.state(A) == "running")
    [event] = room.told.events
    assert (event.kind, event.container_id, event.detail) == ("connect", A, {"type": "bridge", "on": "network"})


async def test_a_destroyed_container_is_removed() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        room.docker.containers.clear()
        room.docker.tell("destroy", A)
        await room.told.until(lambda: A not in room.told.containers)
    assert room.told.log[-1] == "removed a"


async def test_a_look_from_before_the_end_does_not_bring_it_back() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        while not room.docker.inspects:  # for when it was started
            await asyncio.sleep(0)
        room.docker.hold.clear()
        room.docker.containers[A] = ("web", "exited", "")
        room.docker.tell("die", A)
        await room.told.until(lambda: ("die", "a") in room.heard)
        while room.docker.inspects < 2:
            await asyncio.sleep(0)
        room.docker.containers.clear()
        room.docker.tell("destroy", A)
        await room.told.until(lambda: "removed a" in room.told.log)
        room.docker.hold.set()
        await room.told.until(lambda: room.told.log[-1] == "removed a" and "web exited" in room.told.log)
        await room.told.until(lambda: A not in room.told.containers)


async def test_a_container_that_is_being_started_does_not_hold_up_the_others() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "created", ""), B: ("db", "created", "")}
    async with room.running():
        await room.told.until(lambda: len(room.told.containers) == 2)
        room.docker.hold.clear()
        room.docker.tell("start", A)
        await room.told.until(lambda: ("start", "a") in room.heard)
        while not room.docker.inspects:
            await asyncio.sleep(0)
        room.docker.hold.set()
        room.docker.containers[B] = ("db", "running", "")
        room.docker.tell("start", B)
        await room.told.until(lambda: room.state(B) == "running")


async def test_a_look_that_takes_too_long_is_taken_again() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "created", "")}
    find, calls = room.docker.find, 0

    async def slow(ref: str) -> Container | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StepTimeout("Docker did not answer")
        return await find(ref)

    room.docker.find = slow  # type: ignore[method-assign]
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        room.docker.containers[A] = ("web", "running", "")
        room.docker.tell("start", A)
        await room.told.until(lambda: room.state(A) == "running")
    assert calls == 2


async def test_probes_are_told_to_listeners_only() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        room.docker.tell("exec_start: /probe --password=secret", A, execID="e")
        room.docker.tell("exec_die", A, execID="e")
        room.docker.tell("pause", A)
        await room.told.until(lambda: bool(room.told.events))
    assert [action for action, _ in room.heard] == ["exec_start", "exec_die", "pause"]
    assert [event.kind for event in room.told.events] == ["pause"]


async def test_labels_are_not_in_events() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        room.docker.tell("die", A, exitCode="137", signal="9", secret="label")
        await room.told.until(lambda: bool(room.told.events))
    [event] = room.told.events
    assert (event.container, event.detail) == ("web", {"exitCode": "137", "signal": "9"})
    assert abs(event.at.timestamp() - time.time()) < 60


async def test_a_listener_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()

    async def broken(event: DockerEvent) -> None:
        raise RuntimeError("a bug of a listener")

    room.inventory.on_event(broken)
    async with room.running():
        room.docker.containers = {A: ("web", "running", "")}
        room.docker.tell("start", A)
        await room.told.until(lambda: room.state(A) == "running")
    assert "a listener failed" in caplog.text


async def test_a_container_that_can_not_be_told_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    room.docker.containers = {"no-id": ("odd", "running", ""), A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
    assert "skipped the container no-id" in caplog.text


async def test_the_end_of_the_stream_is_loud_and_followed_by_another() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        room.docker.tell("pause", A)
        await room.told.until(lambda: bool(room.told.events))
        last = room.docker.nano
        room.docker.stream.put_nowait(None)
        await room.told.until(lambda: len(room.told.engines) == 3)
    assert [engine is None for engine in room.told.engines[:3]] == [False, True, False]
    assert room.docker.subscribed[1] == last


async def test_while_docker_is_down_it_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    room.docker.down = True
    async with room.running():
        while caplog.text.count("trying again") < 3:
            await asyncio.sleep(0.005)
        assert room.told.engines == [None]
        room.docker.down = False
        await room.told.until(lambda: len(room.told.engines) == 2)
    assert room.told.engines[1] is not None


async def test_what_happened_without_an_event_is_found_at_the_reconnect() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", ""), B: ("db", "running", "")}
    async with room.running():
        await room.told.until(lambda: len(room.told.containers) == 2)
        room.docker.containers = {B: ("db", "exited", "")}
        room.docker.stream.put_nowait(None)
        await room.told.until(lambda: A not in room.told.containers and room.state(B) == "exited")
    assert sorted(room.heard) == [("die", "a"), ("die", "b")]


async def test_what_an_agent_before_has_left_at_the_broker_is_removed() -> None:
    room = Room(known=[A, B])
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: "removed b" in room.told.log and A in room.told.containers)
    assert room.heard == []


async def test_the_same_is_not_published_twice() -> None:
    room = Room()
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        for _ in range(3):
            room.docker.tell("update", A)
        room.docker.containers[B] = ("db", "running", "")
        room.docker.tell("start", B)
        await room.told.until(lambda: room.state(B) == "running")
    assert room.told.log == ["web running", "db running"]


async def test_its_migration_is_told_and_refreshed() -> None:
    moving: dict[str, str] = {}
    room = Room(migration_of=moving.get)
    room.docker.containers = {A: ("web", "running", "")}
    async with room.running():
        await room.told.until(lambda: A in room.told.containers)
        moving[A] = "m-0123456789abcdef"
        room.inventory.refresh(A)
        await room.told.until(lambda: room.told.containers[A].migration == "m-0123456789abcdef")


async def test_a_flood_makes_it_read_the_list_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inventory, "BACKLOG", 5)
    room = Room()
    async with room.running():
        room.docker.containers = {B: ("db", "running", "")}
        for _ in range(20):
            room.docker.tell("top", A)
        await room.told.until(lambda: room.state(B) == "running")
    assert "reading the list anew" in caplog.text


async def test_a_reload_of_the_daemon_makes_it_ask_for_the_engine() -> None:
    room = Room()
    async with room.running():
        room.docker.tell("reload", "host", kind="daemon")
        await room.told.until(lambda: len(room.told.engines) == 2)
