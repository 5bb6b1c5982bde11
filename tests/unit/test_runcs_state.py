"""What runc forgets of a copy that runs is told it again; of one that is gone, or that it knows, nothing is."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from agent.base.shell import Shell
from agent.checkpoint import criu, proc
from agent.migration import runcs_state
from tests.unit.moves import FakeShell
from tests.unit.source_host import started

COPY = "c" * 64
HERE = {"pid": os.getpid(), "pid_start": proc.start_time(os.getpid())}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """runc's file of the copy, as it is when CRIU holds the tasks; and what is kept of it."""
    state = tmp_path / "docker/runtime-runc/moby" / COPY / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("what runc knows")
    folder(tmp_path).mkdir()
    runcs_state.keep(folder(tmp_path), str(tmp_path / "docker"))
    return state


def folder(tmp_path: Path) -> Path:
    return tmp_path / COPY


def forgotten(state: Path) -> None:
    state.unlink()
    state.parent.rmdir()


def test_what_runc_has_forgotten_of_a_copy_that_runs_it_is_told_again(tmp_path: Path, state: Path) -> None:
    forgotten(state)
    runcs_state.give_back(folder(tmp_path), HERE)
    assert state.read_text() == "what runc knows"
    assert state.stat().st_mode & 0o777 == 0o600
    assert os.listdir(state.parent) == ["state.json"]


def test_what_runc_knows_is_left_as_it_is(tmp_path: Path, state: Path) -> None:
    state.write_text("something newer")
    runcs_state.give_back(folder(tmp_path), HERE)
    assert state.read_text() == "something newer"


def test_of_a_copy_that_is_gone_nothing_comes_back(tmp_path: Path, state: Path) -> None:
    forgotten(state)
    runcs_state.give_back(folder(tmp_path), {**HERE, "pid_start": 1})
    assert not state.parent.exists()


def test_where_nothing_was_kept_nothing_is_done(tmp_path: Path) -> None:
    folder(tmp_path).mkdir()
    runcs_state.keep(folder(tmp_path), str(tmp_path / "docker"))
    runcs_state.give_back(folder(tmp_path), HERE)
    assert os.listdir(tmp_path) == [COPY]


# --- the end of runc ---


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One at a restore in the hand-over folder, as far as /proc knows."""
    program = tmp_path / "runc"
    shutil.copy("/bin/cat", program)
    how = {"executable": program, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([f"runc restore --image-path {folder(tmp_path)}/images"], **how) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"!")
        process.stdin.flush()
        assert process.stdout.read(1) == b"!"  # it runs; before that /proc has not all of it
        yield process


async def taken_over(tmp_path: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> FakeShell:
    shell, find = FakeShell(), criu.runc_state
    monkeypatch.setattr(criu, "runc_state", lambda container, roots: find(container, str(tmp_path / "docker")))
    await runcs_state.take_over(cast("Shell", shell), folder(tmp_path), pid)
    return shell


async def test_runc_is_ended_when_its_mount_is_gone(
    tmp_path: Path, state: Path, runc: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = await taken_over(tmp_path, runc.pid, monkeypatch)
    assert runc.wait(10) == -9
    assert shell.calls == ["umount"]
    assert state.read_text() == "what runc knows"


async def test_one_whose_mount_stays_goes_on_and_takes_it_away_itself(
    tmp_path: Path, state: Path, runc: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == state.with_name("criu-root"))
    await taken_over(tmp_path, runc.pid, monkeypatch)
    assert runc.poll() is None


async def test_of_a_copy_that_runc_has_not_noted_runc_is_not_ended(
    tmp_path: Path, state: Path, runc: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten(state)
    shell = await taken_over(tmp_path, runc.pid, monkeypatch)
    assert runc.poll() is None
    assert shell.calls == []


async def test_nobody_but_runc_is_ended(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(["sleep", "600"]) as other:
        await taken_over(tmp_path, other.pid, monkeypatch)
        assert other.poll() is None
