"""Which signal puts which container to sleep, and what is told; the story itself is shown in the lab."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.base.config import Shutdown
from agent.base.errors import AgentError, DumpFailed, Refused
from agent.base.tasks import until_it_works
from agent.checkpoint import freezer
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from agent.migration.moving import Move, Moves
from agent.runtime import asleep
from agent.shutdown import hibernate, sleepers
from agent.shutdown.hibernate import Slept
from agent.shutdown.sleepers import Sleepers
from agent.shutdown.wishes import Wishes
from protocol.errors import ErrorCode
from protocol.status import Event, Phase
from tests.unit.recorded import NAMES, container

ID = "a" * 64
LABELS = {"transship.on-shutdown": "hibernate"}


class Room:
    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.container: Container | None = self.made("SIGURG")
        self.slept: list[str] = []
        self.stopped: list[str] = []
        self.said: list[Event] = []
        self.failure: Exception | None = None
        self.busy = False
        self.asked = asyncio.Event()
        host: Any = SimpleNamespace(
            name="node-a", docker=self, journal=None, settings=SimpleNamespace(shutdown=Shutdown(), state_dir=state)
        )
        self.moves = Moves()
        self.called_back: list[str] = []
        self.sleepers = Sleepers(host, self, self.publish)  # type: ignore[arg-type]
        monkeypatch.setattr(sleepers, "ROOT", state)
        monkeypatch.setattr(hibernate, "put_to_sleep", self.put_to_sleep)
        monkeypatch.setattr(self.sleepers, "stop_otherwise", self.stop_otherwise)

    def made(self, stop_signal: str, labels: dict[str, str] = LABELS) -> Container:
        found = container("docker28", NAMES[0], Config__Labels=labels, Config__StopSignal=stop_signal)
        return replace(found, id=ID, name="one", running=True)

    async def find(self, ref: str) -> Container | None:
        self.asked.set()
        return self.container

    async def claim(self, found: Container, run: Any) -> None:
        if self.busy:
            raise Refused(ErrorCode.BUSY, "it is part of a move")

    def unclaim(self, container_id: str) -> None: ...

    def moves_it(self, phase: Phase) -> None:
        run = SimpleNamespace(id="m-1", phase=phase, deciding=False, container="one")
        self.moves["m-1"] = Move(run, ID)  # type: ignore[arg-type]

    def call_back(self, container_id: str, why: Callable[[str], AgentError]) -> None:
        self.called_back.append(why("one").message)
        self.moves.forget("m-1")

    async def put_to_sleep(self, host: Any, found: Container, wish: Wishes, reason: str) -> Slept:
        self.slept.append(reason)
        if self.failure is not None:
            raise self.failure
        return Slept(1, 1, 1.0)

    async def stop_otherwise(self, found: Container, wish: Wishes, seconds: float = 0) -> None:
        self.stopped.append(found.name)

    async def publish(self, event: Event) -> None:
        self.said.append(event)

    async def happens(self, action: str, **attributes: str) -> None:
        attributes |= self.container.labels if self.container is not None else {}
        await self.sleepers.on_event(DockerEvent("container", action, "", ID, "one", attributes, 1))
        await self.settled()

    async def settled(self) -> None:
        while work := [*self.sleepers._learning, *self.sleepers._work.values()]:
            await asyncio.gather(*work)

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.said]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


async def test_its_stop_signal_puts_it_to_sleep_without_a_question_to_docker(room: Room) -> None:
    """dockerd that is about to end answers none."""
    await room.happens("start")
    room.asked.clear()
    await room.happens("kill", signal="23")
    assert room.slept == ["stop"]
    assert room.kinds == ["hibernated"]
    assert not room.asked.is_set()


async def test_one_that_was_started_just_now_is_asked_for_first(room: Room) -> None:
    await room.happens("kill", signal="23")
    assert room.slept == ["stop"]


@pytest.mark.parametrize("sent", ["9", "15", "1"])
async def test_another_signal_is_not_heard(room: Room, sent: str) -> None:
    await room.happens("start")
    await room.happens("kill", signal=sent)
    assert room.slept == []


async def test_a_stop_signal_that_ends_the_program_is_not_heard(room: Room) -> None:
    room.container = room.made("SIGTERM")
    await room.happens("start")
    await room.happens("kill", signal="15")
    assert room.slept == []


async def test_without_the_label_nothing_is_done_and_nothing_asked(room: Room) -> None:
    room.container = room.made("SIGURG", {})
    await room.happens("start")
    await room.happens("kill", signal="23")
    assert room.slept == []
    assert not room.asked.is_set()


async def test_one_that_can_not_sleep_is_stopped_as_usual_and_that_is_told(room: Room) -> None:
    room.failure = DumpFailed("CRIU could not dump the container")
    await room.happens("start")
    await room.happens("kill", signal="23")
    assert room.kinds == ["hibernate-failed"]
    assert room.said[0].detail["code"] == "dump-failed"
    assert room.stopped == ["one"]


async def test_one_that_is_being_moved_is_not_put_to_sleep(room: Room) -> None:
    room.busy = True
    await room.happens("start")
    await room.happens("kill", signal="23")
    assert room.slept == []
    assert room.said[0].detail["code"] == "busy"
    assert room.stopped == ["one"]


async def test_what_is_decided_to_run_elsewhere_is_not_killed_here_by_a_stop(room: Room) -> None:
    """Its memory may not have got there yet."""
    room.busy = True
    room.moves_it(Phase.RUNNING)
    await room.happens("start")
    await room.happens("kill", signal="23")
    assert room.stopped == []


async def test_a_move_that_goes_on_when_the_host_goes_down_may_end_first(room: Room) -> None:
    room.moves_it(Phase.COPYING)
    assert room.sleepers.is_busy(ID)
    waiting = asyncio.create_task(room.sleepers.until_free(ID, 60))
    await asyncio.sleep(0)
    room.moves.forget("m-1")
    assert await waiting
    assert room.called_back == []


async def test_one_that_takes_too_long_is_taken_back_unless_it_is_decided(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "TAKE_BACK_SECONDS", 0.01)
    room.moves_it(Phase.COPYING)
    assert await room.sleepers.until_free(ID, 0.01)
    assert room.called_back == ["one has to stay: its host goes down"]
    room.moves_it(Phase.COMMITTED)
    assert not await room.sleepers.until_free(ID, 0.01)
    assert len(room.called_back) == 1


async def test_what_the_runtime_has_done_is_told_once(room: Room, tmp_path: Path) -> None:
    (tmp_path / asleep.SAID).mkdir()
    about = {"container_id": ID, "container": "one", "kind": "woken", "at": 1.0, "detail": {"seconds": "0.3"}}
    (tmp_path / asleep.SAID / "1.json").write_text(json.dumps(about))
    (tmp_path / asleep.SAID / "2.json").write_text("half a li")
    await room.sleepers.tell()
    await room.sleepers.tell()
    assert room.kinds == ["woken"]


async def test_the_memory_of_a_container_that_is_removed_goes_with_it(room: Room, tmp_path: Path) -> None:
    for suffix in ("", asleep.PART, asleep.WAKING):
        (tmp_path / (ID + suffix)).mkdir()
    await room.happens("destroy")
    assert os.listdir(tmp_path) == []


async def test_that_it_was_paused_is_learned(room: Room) -> None:
    await room.happens("start")
    assert room.container is not None
    room.container = replace(room.container, paused=True)
    await room.happens("pause")
    assert room.sleepers.known[ID][0].paused


async def test_what_an_agent_before_this_one_left_frozen_goes_on_as_soon_as_it_can(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / f"{ID}{asleep.PART}"
    part.mkdir()
    (part / "reason").write_text("stop")
    tried: list[int] = []

    async def release(*_: object) -> None:
        tried.append(1)
        if len(tried) < 3:
            raise Refused(ErrorCode.BUSY, "nft says no")

    async def at_once(what: str, work: Any, pause: float) -> Any:
        return await until_it_works(what, work, 0)

    monkeypatch.setattr(hibernate, "first_process", lambda _: os.getpid())
    monkeypatch.setattr(freezer, "cgroup_of", lambda _: None)
    monkeypatch.setattr(hibernate, "release", release)
    monkeypatch.setattr(sleepers, "until_it_works", at_once)
    await room.sleepers.open()
    try:
        await room.settled()
        assert len(tried) == 3
        assert not part.exists()
        await room.happens("start")
        assert room.slept == ["stop"], "and it is put to sleep again, as was asked"
    finally:
        await room.sleepers.close()


async def test_the_end_of_a_hibernation_that_fails_leaves_nothing_to_be_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename is done when the folder can't be synced; and the container runs on then."""
    part, there = tmp_path / "one.part", tmp_path / "one"
    part.mkdir()

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    body: Any = SimpleNamespace(part=part, asleep=there)
    with pytest.raises(OSError, match="Input/output"):
        await hibernate._end(Any, body, Any)  # type: ignore[arg-type]
    assert part.exists()
    assert not there.exists()
