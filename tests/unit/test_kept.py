"""A container that was ended on purpose starts by nobody's policy; started by hand it has its own again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any, cast

import pytest

from agent.checkpoint import proc
from agent.checkpoint.proc import start_time
from agent.doors.docker import Docker
from agent.migration import kept
from agent.migration.kept import Keeper, Kept
from tests.unit.moves import CONTAINER, FakeDocker

ALWAYS = Kept({"Name": "always"}, "first")


def docker(*, runs: bool, policy: str = "no", started: str = "again") -> Any:
    found = FakeDocker(policy=policy)
    found.running, found.started_at = runs, started
    return found


async def settled(keeper: Keeper) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*keeper._giving)


async def test_it_comes_back_when_it_is_started(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, Kept({"Name": "on-failure", "MaximumRetryCount": 3}, "first"))
    here = docker(runs=False, started="first")
    keeper = Keeper(cast("Docker", here), tmp_path)
    keeper.look()
    await settled(keeper)
    assert here.policy == "no", "it does not run"
    await here.start(CONTAINER)
    keeper.started(CONTAINER)
    await settled(keeper)
    assert here.policy == "on-failure"
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_one_that_is_about_to_be_ended_does_not_get_it(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, ALWAYS)
    here = docker(runs=True, started="first")
    assert await kept.give_back(here, tmp_path, CONTAINER)
    assert here.policy == "no"
    assert kept.recall(tmp_path, CONTAINER) == ALWAYS


@pytest.fixture
def owner() -> Iterator[Popen[bytes]]:
    with Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_one_that_its_owner_has_left_paused_goes_on(
    tmp_path: Path, owner: Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the owner is gone: that has it paused for a checkpoint of Docker's own."""
    here = docker(runs=True, started="first")
    here.paused = True
    monkeypatch.setattr(kept, "LOOK_SECONDS", 0.002)
    keeper = Keeper(cast("Docker", here), tmp_path)
    kept.keep(tmp_path, CONTAINER, Kept({"Name": "always"}, "first", f"{owner.pid} {start_time(owner.pid)}"))
    keeper.look()
    await here.until(lambda: here.calls.count("find") > 2)
    assert (here.policy, here.paused) == ("no", True)
    owner.kill()
    owner.wait(20)
    await settled(keeper)
    assert (here.policy, here.paused) == ("always", False)


async def test_one_that_its_owner_gives_up_goes_on_whatever_its_policy(tmp_path: Path) -> None:
    here = docker(runs=True, started="first")
    here.paused = True
    kept.keep(tmp_path, CONTAINER, Kept({"Name": "no"}, "first", kept.me()))
    assert not await kept.give_back(here, tmp_path, CONTAINER)
    kept.give_up(tmp_path, CONTAINER)
    assert await kept.give_back(here, tmp_path, CONTAINER)
    assert (here.policy, here.paused) == ("no", False)
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_nothing_goes_on_beneath_a_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = docker(runs=True, started="first")
    here.paused = True
    kept.keep(tmp_path, CONTAINER, Kept({"Name": "always"}, "first", kept.me()))
    kept.give_up(tmp_path, CONTAINER)
    monkeypatch.setattr(proc, "task", lambda pid: proc.Task(pid, 1, "t", 77, 0))
    assert not await kept.give_back(here, tmp_path, CONTAINER)
    assert here.paused


async def test_a_policy_that_was_given_meanwhile_stays(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, ALWAYS)
    here = docker(runs=True, policy="unless-stopped")
    await kept.give_back(here, tmp_path, CONTAINER)
    assert here.policy == "unless-stopped"
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, ALWAYS)
    here = docker(runs=False)
    here.there = False
    keeper = Keeper(cast("Docker", here), tmp_path)
    keeper.look()
    await settled(keeper)
    assert kept.recall(tmp_path, CONTAINER) is None


@pytest.mark.parametrize("policy", [{}, {"Name": ""}, {"Name": "no"}])
def test_a_policy_that_starts_nothing_is_not_kept(tmp_path: Path, policy: dict[str, Any]) -> None:
    kept.keep(tmp_path, CONTAINER, Kept(policy, "first"))
    assert list(tmp_path.iterdir()) == []


def test_what_was_about_to_be_written_down_is_removed(tmp_path: Path) -> None:
    kept.sweep(tmp_path)
    kept.keep(tmp_path, CONTAINER, ALWAYS)
    (tmp_path / kept.FOLDER / "half.part").touch()
    kept.sweep(tmp_path)
    assert [path.stem for path in (tmp_path / kept.FOLDER).iterdir()] == [CONTAINER]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy": {}}'])
def test_what_is_no_record_keeps_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / kept.FOLDER).mkdir()
    (tmp_path / kept.FOLDER / f"{CONTAINER}.json").write_text(text)
    assert kept.recall(tmp_path, CONTAINER) is None


def test_just_after_its_start_it_has_its_own_already(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, ALWAYS)
    assert kept.policy_of(tmp_path, docker(runs=True).container()) == {"Name": "always"}
    assert kept.policy_of(tmp_path, docker(runs=True, policy="unless-stopped").container())["Name"] == "unless-stopped"
