"""The source's side before the decision: what has begun is taken back, until that has worked."""

import asyncio
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.base.errors import DumpFailed, Refused
from agent.checkpoint import proc
from agent.migration import leaving
from protocol.errors import ErrorCode
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.unit import moves, source_host
from tests.unit.moves import CONTAINER, FOR_EVER, ID, TARGET, Faults
from tests.unit.source_host import ROLLED_BACK, STRANDED, World, dump_fails, started

program = pytest.fixture(source_host.program)
world = pytest.fixture(source_host.world)


# --- taking back, until it works ---


async def test_an_undo_that_fails_is_tried_until_the_container_is_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_fails(monkeypatch, lambda: world.docker.failing.update(policy=3))
    await world.start()
    assert await world.failure() is ErrorCode.STRANDED
    await world.all_ended()
    assert world.journal.phases[-2:] == [STRANDED, ROLLED_BACK]
    assert world.runs
    assert world.docker.policy == "always"


async def test_a_target_that_asks_need_not_wait_for_an_undo_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_fails(monkeypatch, lambda: world.docker.failing.update(policy=FOR_EVER))
    run = await world.start()
    await world.end()
    assert await world.sources.decision(TARGET, run.id) is DecisionKind.ABORT
    assert world.watching.decisions[-1] is DecisionKind.ABORT


async def test_recovery_goes_on_until_dockerd_is_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.docker.failing.update(find=5)
    await world.interrupted(Phase.FROZEN)
    await world.all_ended()
    assert world.journal.phases[-1] == ROLLED_BACK
    assert world.runs
    assert world.docker.policy == "always"
    assert len([line for line in caplog.messages if "dockerd is away" in line]) == 1


async def test_an_end_that_can_not_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_fails(monkeypatch)
    world.journal.faults.failing.update({ROLLED_BACK: 3})
    await world.start()
    assert await world.failure() is ErrorCode.DUMP_FAILED
    assert world.journal.phases[-1] == ROLLED_BACK


async def test_neither_a_cancel_nor_a_death_stops_a_recovery(world: World) -> None:
    world.docker.failing.update(find=FOR_EVER)
    await world.interrupted(Phase.FROZEN)
    await world.docker.until(lambda: "find" in world.docker.calls)
    with pytest.raises(Refused, match="taken back already"):
        world.sources.cancel(ID)
    world.sources.container_died(CONTAINER)
    world.docker.failing.clear()
    await world.all_ended()
    assert world.runs


async def test_a_slow_peer_does_not_make_an_undo_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_fails(monkeypatch)
    monkeypatch.setattr(leaving, "DISCARD_SECONDS", 0.01)
    async with world.peer.held("discard"):
        await world.start()
        assert await world.failure() is ErrorCode.DUMP_FAILED
    assert world.journal.phases[-1] == ROLLED_BACK


async def test_a_dump_that_takes_too_long_is_taken_back(world: World) -> None:
    world.sources._host = replace(world.sources._host, settings=moves.settings(dump=0.01))
    async with world.peer.held("printed"):
        await world.start()
        assert await world.failure() is ErrorCode.STEP_TIMEOUT
    assert world.runs


async def test_a_dump_that_fails_while_its_target_restores_is_taken_back_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.peer.held("prepare") as restoring:

        async def fails(*_: object) -> None:
            await restoring.wait()
            raise DumpFailed("CRIU has ended")

        monkeypatch.setattr(moves.FakeStrategy, "fails_to_serve", fails)
        await world.start()
        assert await world.failure() is ErrorCode.DUMP_FAILED
    assert world.journal.phases[-2:] == [Phase.FROZEN, ROLLED_BACK]
    assert world.runs
    assert world.peer.calls[-1] == "discard"


# --- the dump that a crash has left behind ---


@pytest.mark.parametrize("named", [True, False], ids=["on-its-command-line", "where-it-stands"])
async def test_recovery_thaws_when_the_dump_left_behind_has_ended(
    world: World, tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, criu_in = Faults(), proc.criu_in

    def look(folder: Path) -> list[int]:
        looks.note("look")
        return criu_in(folder)

    monkeypatch.setattr(proc, "criu_in", look)
    criu = tmp_path / ("runc" if named else "criu")
    shutil.copy("/bin/cat", criu)
    images = tmp_path / ID / "images"
    images.mkdir(parents=True)
    called = f"runc checkpoint --image-path {images}" if named else "criu swrk"
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([called], executable=criu, cwd=None if named else tmp_path / ID, **how) as dumping:
        assert dumping.stdin is not None
        assert dumping.stdout is not None
        dumping.stdin.write(b"!")
        dumping.stdin.flush()
        assert dumping.stdout.read(1) == b"!"  # it runs; before that /proc has not all of it
        assert criu_in(tmp_path / ID) == [dumping.pid]
        assert criu_in(tmp_path / "m-another") == []
        await world.interrupted(Phase.FROZEN)
        waiting = asyncio.create_task(world.all_ended())
        await looks.until(lambda: len(looks.calls) > 4)
        assert not waiting.done()
        assert moves.is_frozen(tmp_path / "cgroup")
        dumping.kill()
        dumping.wait()
        await waiting
    assert world.runs
