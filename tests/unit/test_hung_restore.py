"""A restore that nobody wants any more, and how long its target waits for it before it ends what there is of it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.doors.handover import RestoreResult
from agent.migration import held
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.migration.target import Target
from agent.runtime import handover
from protocol.status import Phase
from tests.unit import moves
from tests.unit.moves import CONTAINER, TARGET, FakeDocker, FakeJournal, FakeShell

NEVER = 10**6
SOON = 0.01


class World:
    """A target whose runtime restores, and has said nothing of how that went; what is ended of it."""

    def __init__(self, folder: Path, journal: FakeJournal) -> None:
        self.folder = folder / CONTAINER
        self.folder.mkdir()
        os.mkfifo(self.folder / handover.GO)
        staged = {"pid": os.getpid(), "bundle": "", "root": "", "network_attached_early": True, "uids": [], "gids": []}
        (self.folder / handover.STAGED).write_text(json.dumps(staged))
        self.journal = journal
        self.ended: list[str] = []

    def target(self, *, lazy: bool, docker_seconds: float) -> Target:
        host = moves.host(TARGET, FakeDocker(), FakeShell(), self.journal)
        host = replace(host, settings=moves.settings(TARGET, docker=docker_seconds))
        entry = moves.entry(Role.TARGET, Phase.RESTORING, {"container_id": CONTAINER})
        return Target(host, Run(self.journal, entry), moves.offer(lazy=lazy))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, FakeJournal(tmp_path / "journal.sqlite"))

    async def end(_: object, result: RestoreResult) -> None:
        world.ended.append(f"process {result.pid}")

    async def end_in_part(_: object) -> None:
        world.ended.append("whatever is there")

    monkeypatch.setattr(handover, "ROOT", str(tmp_path))
    monkeypatch.setattr(held, "end", end)
    monkeypatch.setattr(held, "end_in_part", end_in_part)
    await world.journal.open()
    yield world
    await world.journal.close()


async def end_copy(target: Target) -> None:
    async with asyncio.timeout(moves.WATCHDOG_SECONDS):
        await target._end_copy(target._hand_over_again())


async def test_one_whose_memory_was_to_follow_may_hang_and_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source has taken it back, and brings no page any more."""
    monkeypatch.setattr(held, "HUNG_SECONDS", SOON)
    await end_copy(world.target(lazy=True, docker_seconds=NEVER))
    assert world.ended == ["whatever is there"]


async def test_any_other_comes_to_its_end_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs nobody; and ended half-way it leaves what runc and CRIU would have cleared."""
    monkeypatch.setattr(held, "HUNG_SECONDS", SOON)
    target = world.target(lazy=False, docker_seconds=NEVER)
    looked = 0
    exists = Path.exists

    def look(path: Path) -> bool:
        nonlocal looked
        if path.name == handover.RESULT:
            looked += 1
            if looked == 4:
                result = {"code": 0, "pid": 7, "runc": 8, "began": 0.0, "ended": 1.0}
                path.write_text(json.dumps(result))
        return exists(path)

    monkeypatch.setattr(Path, "exists", look)
    await end_copy(target)
    assert world.ended == ["process 7"]


async def test_and_is_ended_where_it_comes_to_none(world: World) -> None:
    await end_copy(world.target(lazy=False, docker_seconds=SOON))
    assert world.ended == ["whatever is there"]


def test_a_cancelled_move_has_little_time_for_it() -> None:
    """A cancel is to be over within a second, on both hosts."""
    assert held.HUNG_SECONDS < 1
