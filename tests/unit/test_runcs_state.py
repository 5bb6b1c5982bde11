"""What runc forgets of a copy that runs is told it again; of one that is gone, or that it knows, nothing is."""

import os
from pathlib import Path

import pytest

from agent.checkpoint import proc
from agent.migration import runcs_state

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
