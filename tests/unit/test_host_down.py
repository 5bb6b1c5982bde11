"""A host that goes down, between a pretended Docker and pretended sleepers: what is done, noted, and taken up."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.base import durable
from agent.base.errors import DockerFailed
from agent.doors import systemd
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from agent.migration import kept
from agent.migration.journal import Entry
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.runtime import asleep
from agent.shutdown import hibernate, host_down, wishes
from agent.shutdown.host_down import HostDown
from agent.shutdown.host_plan import Going
from agent.shutdown.wishes import Wishes
from protocol.status import Event
from tests.unit.recorded import NAMES, container

MB = 1_000_000


class FakeDocker:
    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.did: list[tuple[str, str]] = []
        self.probed: asyncio.Queue[DockerEvent] = asyncio.Queue()
        self.health = ""
        """Of what is started."""

    @asynccontextmanager
    async def events(self, since: int) -> AsyncIterator[AsyncIterator[DockerEvent]]:
        async def told() -> AsyncIterator[DockerEvent]:
            while True:
                yield await self.probed.get()

        yield told()

    def probes(self, ref: str, health: str) -> None:
        found = self.containers[ref] = replace(self.containers[ref], health=health)
        self.probed.put_nowait(DockerEvent("container", "health_status", health, ref, found.name, {}, 1))

    async def find(self, ref: str) -> Container | None:
        return self.containers.get(ref)

    async def set_restart_policy(self, ref: str, policy: Mapping[str, Any]) -> None:
        self.did.append((f"policy {policy['Name']}", self.containers[ref].name))

    async def start(self, ref: str) -> None:
        self.did.append(("start", self.containers[ref].name))
        self.containers[ref] = replace(self.containers[ref], running=True, health=self.health)


class FakeSleepers:
    def __init__(self, docker: FakeDocker) -> None:
        self._docker = docker
        self.known: dict[str, tuple[Container, Wishes]] = {}
        self.fails: set[str] = set()
        self.busy: dict[str, bool] = {}
        """Those that a move has, and whether it lets go of them in time."""
        self.said: list[Event] = []

    async def learned(self) -> None: ...

    def is_busy(self, container_id: str) -> bool:
        return container_id in self.busy

    async def until_free(self, container_id: str, seconds: float) -> bool:
        return self.busy.get(container_id, True)

    def begin(self, container_id: str, reason: str) -> "asyncio.Task[bool]":
        async def sleep() -> bool:
            found = self._docker.containers[container_id]
            self._docker.did.append(("sleep", found.name))
            if found.name in self.fails:
                return False
            self._docker.containers[container_id] = replace(found, running=False)
            return True

        return asyncio.create_task(sleep())

    async def stop_otherwise(self, found: Container, wish: Wishes, seconds: float = 0) -> None:
        self._docker.did.append(("signal", found.name))
        self._docker.containers[found.id] = replace(found, running=False)

    async def publish(self, event: Event) -> None:
        self.said.append(event)


class Room:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.docker = FakeDocker()
        self.sleepers = FakeSleepers(self.docker)
        self.sizes: dict[str, int] = {}
        self.evacuate: Any = None
        self.open: list[Entry] = []
        """Migrations."""

    def add(self, name: str, wish: str = "hibernate", size: int = MB, *, harmless: bool = True, **labels: str) -> str:
        recorded = container("docker28", NAMES[0])
        said = {f"com.docker.compose.{key}": to for key, to in labels.items()}
        policy = {"Name": "always"}
        one = replace(recorded, id=name * 8, name=name, running=True, labels=said, restart_policy=policy)
        self.docker.containers[one.id] = one
        self.sleepers.known[one.id] = one, Wishes(wish, wishes.COLD, 15, 23 if harmless else 0)
        self.sizes[one.id] = size
        return one.id

    def agent(self) -> HostDown:
        """A new one, as after a restart."""
        settings = SimpleNamespace(state_dir=self.state)
        host: Any = SimpleNamespace(name="node-a", docker=self.docker, settings=settings, journal=self)
        down = HostDown(host, self.sleepers, self.evacuate)  # type: ignore[arg-type]

        async def going() -> list[Going]:
            known = self.sleepers.known.values()
            return [
                Going(one.id, one.name, wish.on_shutdown, self.sizes[one.id])
                for one, wish in known
                if wish.on_shutdown != wishes.IGNORE
            ]

        down._going = going  # type: ignore[method-assign]
        return down

    async def unfinished(self) -> list[Entry]:
        return self.open

    def result(self) -> str:
        return next(one.detail["result"] for one in self.sleepers.said if one.kind == "host-shutdown-ready")

    def written(self) -> dict[str, str]:
        found = json.loads((self.state / host_down.FILE).read_text())["containers"]
        return {one["name"]: one["what"] for one in found.values()}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(hibernate, "boot_id", lambda: "the next boot")


async def test_each_has_no_policy_before_it_sleeps_and_that_is_written_down(room: Room) -> None:
    one = room.add("one")
    await room.agent().begin(60, "a test")
    assert room.docker.did == [("policy no", "one"), ("sleep", "one")]
    assert room.result() == "one: hibernated"
    assert room.written() == {"one": "hibernate"}
    found = kept.recall(room.state, one)
    assert found is not None
    assert found.policy == {"Name": "always"}


async def test_one_that_can_not_sleep_is_stopped_and_is_no_sleeper_at_boot(room: Room) -> None:
    room.add("bad")
    room.sleepers.fails.add("bad")
    await room.agent().begin(60, "a test")
    assert room.result() == "bad: not hibernated, stopped"
    assert room.written() == {"bad": "stop"}


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
    assert asked == [f"EXTEND_TIMEOUT_USEC={host_down.EXTEND_USEC}"] * 4, "not once more when nothing moves"
