"""Docker's own checkpoint that ends its container is given up: that goes on, and whoever gave it up hears so."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.errors import DockerFailed
from agent.checkpoint import freezer, proc
from agent.doors import docker_checkpoints
from agent.doors.docker import Docker
from agent.migration import kept
from agent.vault import own
from tests.unit.moves import CONTAINER, WATCHDOG_SECONDS, FakeDocker
from tests.unit.test_kept import settled


class PausingDocker(FakeDocker):
    """One whose container can be paused."""

    async def pause(self, ref: str) -> None:
        await self._asked("pause")
        self.paused = True


async def test_a_cancel_comes_out_when_criu_has_let_go_however_long_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, tracer = PausingDocker(), 77
    creating = asyncio.Event()

    async def create(*_: Any, **__: Any) -> None:
        creating.set()
        await asyncio.Event().wait()

    async def nothing(*_: Any) -> list[str]:
        return []

    monkeypatch.setattr(docker_checkpoints, "create", create)
    monkeypatch.setattr(docker_checkpoints, "names", nothing)
    monkeypatch.setattr(own, "check_engine", nothing)
    monkeypatch.setattr(own, "END_SECONDS", 0.01)
    monkeypatch.setattr(kept, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(freezer, "cgroup_of", lambda pid: freezer.Cgroup(tmp_path, 2))
    monkeypatch.setattr(proc, "task", lambda pid: proc.Task(pid, 1, "t", tracer, 0))
    taking = asyncio.create_task(
        own.create(cast("Docker", here), tmp_path, here.container(), "monday", leave_running=False)
    )
    async with asyncio.timeout(WATCHDOG_SECONDS):
        await creating.wait()
        taking.cancel()
        await here.until(lambda: here.calls.count("find") > 3)
        assert here.paused, "a CRIU has it still"
        tracer = 0
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert (here.paused, here.policy) == (False, "always")
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_where_dockerd_is_away_it_goes_on_with_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took the checkpoint lives on, and has said that it has no more to do with it."""
    here = PausingDocker()

    async def create(*_: Any, **__: Any) -> None:
        here.failing["find"] = 1
        raise DockerFailed("dockerd does not answer")

    async def nothing(*_: Any) -> list[str]:
        return []

    monkeypatch.setattr(docker_checkpoints, "create", create)
    monkeypatch.setattr(docker_checkpoints, "names", nothing)
    monkeypatch.setattr(own, "check_engine", nothing)
    monkeypatch.setattr(freezer, "cgroup_of", lambda pid: freezer.Cgroup(tmp_path, 2))
    monkeypatch.setattr(proc, "task", lambda pid: None)
    with pytest.raises(DockerFailed):
        await own.create(cast("Docker", here), tmp_path, here.container(), "monday", leave_running=False)
    assert here.paused
    keeper = kept.Keeper(cast("Docker", here), tmp_path)
    keeper.look()
    await settled(keeper)
    assert (here.paused, here.policy) == (False, "always")
