"""A container that was ended on purpose starts by nobody's policy; started by hand it has its own again."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agent.doors.docker import Docker
from agent.migration import kept
from agent.migration.kept import Kept
from tests.unit.moves import CONTAINER, FakeDocker


def docker(*, runs: bool, policy: str = "no") -> Any:
    found = FakeDocker(policy=policy)
    found.running = runs
    return found


async def settled(kept: Kept) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*kept._giving)


async def test_it_comes_back_when_it_is_started(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, {"Name": "on-failure", "MaximumRetryCount": 3})
    here = docker(runs=False)
    giving = Kept(cast("Docker", here), tmp_path)
    giving.look()
    await settled(giving)
    assert here.policy == "no", "it does not run"
    here.running = True
    giving.started(CONTAINER)
    await settled(giving)
    assert here.policy == "on-failure"
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_a_policy_that_was_given_meanwhile_stays(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, {"Name": "always"})
    here = docker(runs=True, policy="unless-stopped")
    await kept.give_back(here, tmp_path, CONTAINER)
    assert here.policy == "unless-stopped"
    assert kept.recall(tmp_path, CONTAINER) is None


async def test_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, {"Name": "always"})
    here = docker(runs=False)
    here.there = False
    giving = Kept(cast("Docker", here), tmp_path)
    giving.look()
    await settled(giving)
    assert kept.recall(tmp_path, CONTAINER) is None


@pytest.mark.parametrize("policy", [{}, {"Name": ""}, {"Name": "no"}])
def test_a_policy_that_starts_nothing_is_not_kept(tmp_path: Path, policy: dict[str, Any]) -> None:
    kept.keep(tmp_path, CONTAINER, policy)
    assert list(tmp_path.iterdir()) == []


def test_just_after_its_start_it_has_its_own_already(tmp_path: Path) -> None:
    kept.keep(tmp_path, CONTAINER, {"Name": "always"})
    assert kept.policy_of(tmp_path, docker(runs=True).container()) == {"Name": "always"}
    assert kept.policy_of(tmp_path, docker(runs=True, policy="unless-stopped").container())["Name"] == "unless-stopped"
