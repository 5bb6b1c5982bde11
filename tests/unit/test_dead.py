"""A CRIU is ended only where all that it dumps has ended: at anything else it is waited for."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.checkpoint import freezer, proc
from agent.checkpoint.freezer import Cgroup
from agent.strategy import dead

COPY = "c" * 64
WATCHDOG_SECONDS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a dump; CRIU stands in its work folder."""
    (tmp_path / "work").mkdir()
    (tmp_path / "root" / COPY).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def criu(folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    program = folder / "criu"
    program.write_text("#!/bin/sh\necho up\nread -r _\n")
    program.chmod(0o700)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([program], cwd=folder / "work", **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.read(1) == b"u"
        yield process
        process.kill()


def dumped(folder: Path, pid: int, start: int | None) -> None:
    """What runc says of it."""
    said = {"init_process_pid": pid, "init_process_start": start, "config": {}}
    (folder / "root" / COPY / "state.json").write_text(json.dumps(said))


@pytest.fixture
def gone() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


async def test_a_criu_that_dumps_what_has_died_is_ended(
    folder: Path, criu: "subprocess.Popen[bytes]", gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "LOOK_SECONDS", 0.01)
    dumped(folder, gone, 1)
    seeing = asyncio.create_task(dead.see_to(folder))
    assert await asyncio.to_thread(criu.wait, WATCHDOG_SECONDS) == -9
    seeing.cancel()


def test_a_process_that_lives_is_not_dead(folder: Path) -> None:
    dumped(folder, os.getpid(), proc.start_time(os.getpid()))
    assert not dead.is_dead(folder)


def test_nor_is_one_of_which_other_tasks_are_left(folder: Path, gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "group").mkdir()
    (folder / "group/cgroup.procs").write_text("1\n")
    dumped(folder, gone, 1)
    assert dead.is_dead(folder)
    monkeypatch.setattr(freezer, "of_container", lambda name: [Cgroup(folder / "group", 2)] if name == COPY else [])
    assert not dead.is_dead(folder)


@pytest.mark.parametrize("said", [None, "", "{}", '{"init_process_pid": "many"}'])
def test_what_is_not_known_is_not_dead(folder: Path, said: str | None) -> None:
    if said is not None:
        (folder / "root" / COPY / "state.json").write_text(said)
    assert not dead.is_dead(folder)
