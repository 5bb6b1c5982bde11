"""Checkpoints by the clock: when a container's turn comes."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from agent.base.config import Checkpoints
from agent.base.errors import DumpFailed
from agent.doors.docker import Docker
from agent.doors.docker_model import Summary
from agent.vault.schedule import LABEL, Schedule, interval
from agent.vault.store import Store
from protocol.checkpoint import CheckpointInfo


class Running:
    """A dockerd with these containers."""

    def __init__(self, **labels: str) -> None:
        self._found = [Summary(name, name, "py", "running", "", {LABEL: every}) for name, every in labels.items()]

    async def list(self, *, all: bool) -> list[Summary]:  # noqa: A002
        assert not all
        return self._found


class Taken:
    """What was taken, and whether it works."""

    def __init__(self) -> None:
        self.of: list[str] = []
        self.fails = False

    async def __call__(self, container: str) -> None:
        self.of.append(container)
        if self.fails:
            raise DumpFailed("no")


def schedule(folder: Path, taken: Taken, **labels: str) -> Schedule:
    return Schedule(cast("Docker", Running(**labels)), Store(Checkpoints(folder=folder)), taken, "a")


@pytest.mark.parametrize(("label", "seconds"), [("30m", 1800), ("2d", 172800), (" 6h ", 21600), ("90s", 90)])
def test_an_interval_is_a_number_and_a_unit(label: str, seconds: float) -> None:
    assert interval(label) == seconds


@pytest.mark.parametrize("label", ["", "0m", "h", "-1h", "1w", "1.5h", "1h30m", "9999999s"])
def test_anything_else_is_none(label: str) -> None:
    assert interval(label) is None


async def test_each_has_its_turn_when_its_time_has_come(tmp_path: Path) -> None:
    taken = Taken()
    clock = schedule(tmp_path, taken, web="10m", db="1h", odd="often")
    for now in (0, 599, 600, 601, 1199, 1200, 3600):
        await clock.look(now)
    assert taken.of == ["web", "web", "web", "db"]


async def test_one_that_fails_is_tried_when_its_time_comes_again(tmp_path: Path) -> None:
    taken = Taken()
    taken.fails = True
    clock = schedule(tmp_path, taken, web="10m")
    for now in (0, 600, 605, 1200):
        await clock.look(now)
    assert taken.of == ["web", "web"]


async def test_it_is_looked_at_again_when_the_next_one_is_due(tmp_path: Path) -> None:
    clock = schedule(tmp_path, Taken(), web="10m", db="1h", odd="often")
    assert [await clock.look(now) for now in (0, 100, 600, 3599)] == [600, 600, 1200, 3600]


async def test_nothing_is_read_while_no_container_wants_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "all", lambda _: pytest.fail("the notes were read"))
    assert await schedule(tmp_path, Taken()).look(0) is None


async def test_a_container_that_is_started_is_seen_at_once(tmp_path: Path) -> None:
    """Nothing is looked at in between: neither by the clock, nor again when nothing has changed."""
    looked: asyncio.Queue[float] = asyncio.Queue()

    class Watched(Schedule):
        async def look(self, now: float) -> float | None:
            looked.put_nowait(now)
            return await super().look(now)

    clock = Watched(cast("Docker", Running()), Store(Checkpoints(folder=tmp_path)), Taken(), "a")
    running = asyncio.create_task(clock.run())
    async with asyncio.timeout(20):
        for _ in range(3):
            await looked.get()
            assert looked.empty()
            clock.changed()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_after_a_restart_what_was_missed_is_taken_once(tmp_path: Path) -> None:
    store = Store(Checkpoints(folder=tmp_path))
    at = datetime.fromtimestamp(1000, UTC)
    store.new_file("web", "0" * 12, "zstd").write_bytes(b"x")
    store.note(CheckpointInfo(id="0" * 12, container="web", host="a", at=at, place="-", bytes=1))
    taken = Taken()
    clock = schedule(tmp_path, taken, web="10m")
    for now in (1500, 5000, 5005):
        await clock.look(now)
    assert taken.of == ["web"]
