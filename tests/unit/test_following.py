"""Whether the memory of a copy is here: what its target says, and what it does where that can't be any more."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.errors import Cancelled, RestoreFailed
from agent.checkpoint import freezer, logs, proc
from agent.checkpoint.freezer import Cgroup
from agent.doors.handover import HandOver
from agent.migration import following as following_module
from agent.migration.following import Following
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from protocol.peer import Arrival
from protocol.status import Phase
from tests.unit import moves

PID, STARTED = 7, 77


class World:
    """A copy that runs, whose page channel's end is a folder: its command has ended, or there is no end any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.sqlite")
        self.group = moves.cgroup(folder / "cgroup", PID)
        record = {"pid": PID, "pid_start": STARTED}
        self.run = Run(self.journal, moves.entry(Role.TARGET, Phase.RUNNING, record))

    def following(self, *, lazy: bool = True) -> Following:
        """As a restarted agent has it."""
        hand_over = cast("HandOver", type("Folder", (), {"path": self.folder, "work": self.folder}))
        host = moves.host("beta", moves.FakeDocker(), moves.FakeShell(), self.journal)
        return Following(host, self.run, hand_over, lazy=lazy)

    def ended(self, code: int) -> None:
        (self.folder / "pages").mkdir(exist_ok=True)
        (self.folder / "pages/ended").write_text(str(code))

    @property
    def held(self) -> bool:
        return moves.is_frozen(self.group.path)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path)

    def cgroup_of(_: int) -> Cgroup:
        return world.group

    monkeypatch.setattr(proc, "start_time", lambda pid: STARTED if pid == PID else None)
    monkeypatch.setattr(freezer, "cgroup_of", cgroup_of)
    monkeypatch.setattr(logs, "FAILED", tmp_path / "failed")
    await world.journal.open()
    await world.journal.put(moves.entry(Role.TARGET, Phase.RUNNING, world.run.record))
    yield world
    await world.journal.close()


async def kept(world: World) -> dict[str, Any]:
    entry = await world.journal.get(moves.ID, Role.TARGET)
    assert entry is not None
    return entry.record


async def test_memory_that_came_before_is_there(world: World) -> None:
    assert await world.following(lazy=False).look() is Arrival.WHOLE
    assert "whole" not in await kept(world), "nothing to note"


async def test_that_all_is_there_is_noted_and_known_when_the_channel_is_gone(world: World) -> None:
    world.ended(0)
    assert await world.following().look() is Arrival.WHOLE
    (world.folder / "pages/ended").unlink()
    assert await world.following().look() is Arrival.WHOLE
    assert not world.held


async def test_a_target_that_knows_of_no_channel_any_more_says_lost_and_not_whole(world: World) -> None:
    """After a reboot."""
    assert (await world.following().arrived()).state is Arrival.LOST
    assert (await kept(world))["lost"]


async def test_a_copy_whose_daemon_has_failed_is_held_once(world: World) -> None:
    world.ended(1)
    assert await world.following().look() is Arrival.LOST
    assert world.held
    await freezer.thaw(world.group)
    assert await world.following().look() is Arrival.LOST
    assert not world.held, "a person has let it go"


async def test_another_process_of_that_number_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "start_time", lambda _: STARTED + 1)
    assert await world.following().look() is Arrival.LOST
    await world.following().end()
    assert not world.held


async def test_what_came_late_is_still_lost(world: World) -> None:
    """It was said, and the source may have let go of it since."""
    assert await world.following().look() is Arrival.LOST
    world.ended(0)
    assert await world.following().look() is Arrival.LOST


async def test_once_it_is_given_up_it_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows may fail at first, and is tried again by nobody's request."""
    ended: list[Cgroup] = []

    async def kill_frozen(group: Cgroup) -> None:
        ended.append(group)

    monkeypatch.setattr(freezer, "kill_frozen", kill_frozen)
    assert await world.following().look() is Arrival.LOST
    assert not await world.following().give_up(asked=False)
    assert ended == []
    assert await world.following().give_up(asked=True)
    assert await world.following().give_up(asked=False)
    assert ended == [world.group, world.group]
    assert (await kept(world))["given_up"]


async def test_no_memory_comes_from_the_hold_to_the_go(world: World) -> None:
    following = world.following()
    await following._turn()
    following.wait_with_the_rest()
    turn = asyncio.create_task(following._turn())
    await asyncio.sleep(0)
    assert not turn.done()
    following.go_on()
    await turn


async def test_a_go_that_is_long_in_coming_does_not_break_the_link(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "WAIT_SECONDS", 0)
    following = world.following()
    following.wait_with_the_rest()
    await following._turn()


def waiting(world: World, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Following:
    """For a daemon that says nothing."""
    following = world.following()
    hand_over = type("Folder", (), {"work": world.folder, "give_to_lazy": lambda _: None})()
    monkeypatch.setattr(following, "_hand_over", hand_over)
    host = replace(following._host, settings=moves.settings("beta", prepare=seconds))
    monkeypatch.setattr(following, "_host", host)
    return following


async def test_a_daemon_that_does_not_come_up_is_waited_for_within_the_restores_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is before the decision: the source takes it back."""
    async with asyncio.timeout(moves.WATCHDOG_SECONDS):
        with pytest.raises(RestoreFailed, match="does not come up"):
            await waiting(world, monkeypatch, 0.01).ask(asyncio.Event())


async def test_and_no_longer_than_until_the_source_has_taken_it_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The discard waits for its turn."""
    given_up = asyncio.Event()
    asking = asyncio.create_task(waiting(world, monkeypatch, 10**6).ask(given_up))
    await asyncio.sleep(0)
    assert not asking.done()
    given_up.set()
    async with asyncio.timeout(moves.WATCHDOG_SECONDS):
        with pytest.raises(Cancelled):
            await asking
