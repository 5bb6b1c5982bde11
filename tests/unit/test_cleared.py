"""A container that is removed for good: what the engine has left of it goes, and nothing of others."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.base.shell import Shell
from agent.checkpoint import freezer, proc
from agent.migration import cleared

ID, OTHER = "5f" * 32, "6a" * 32
CALLED_SO = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"containerd-shim")
print(flush=True)
time.sleep(99)
"""
CTR = """#!/bin/sh
echo "$@" >>{said}
[ {works} = 0 ] || exit 1
case $5 in tasks) kill -9 {shim} ;; esac
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cleared, "SHIM_SECONDS", 0.05)
    monkeypatch.setattr(freezer, "CGROUP_ROOT", tmp_path / "cgroup")
    (tmp_path / "cgroup/freezer/docker" / ID).mkdir(parents=True)
    (tmp_path / "cgroup/freezer/docker" / OTHER).mkdir(parents=True)


def shim(container: str) -> "subprocess.Popen[bytes]":
    """A process that is called as a shim is."""
    words = ["-namespace", "moby", "-id", container, "-address", "/run/c.sock"]
    process = subprocess.Popen([sys.executable, "-c", CALLED_SO, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def shims() -> "Iterator[dict[str, subprocess.Popen[bytes]]]":
    made = {container: shim(container) for container in (ID, OTHER)}
    yield made
    for process in made.values():
        process.kill()
        process.communicate()


def put_ctr(folder: Path, monkeypatch: pytest.MonkeyPatch, shim: int, *, works: bool) -> Path:
    said, path = folder / "said", folder / "bin"
    path.mkdir()
    (path / "ctr").write_text(CTR.format(said=said, works=0 if works else 1, shim=shim))
    (path / "ctr").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    return said


def test_a_shim_is_known_by_its_container(shims: "dict[str, subprocess.Popen[bytes]]") -> None:
    assert proc.shims_of(ID) == [proc.Shim(shims[ID].pid, "/run/c.sock", "moby")]
    assert proc.shims_of("7b" * 32) == []


async def test_containerd_is_asked_first(
    shims: "dict[str, subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = put_ctr(tmp_path, monkeypatch, shims[ID].pid, works=True)
    await cleared.clear(Shell(), ID)
    asked = [line.split(" ", 4)[4] for line in said.read_text().splitlines()]
    assert asked == [f"tasks delete --force {ID}", f"containers delete {ID}"]
    assert "--address /run/c.sock --namespace moby" in said.read_text()
    assert shims[ID].wait(5) == -9
    assert shims[OTHER].poll() is None
    assert [path.name for path in (tmp_path / "cgroup/freezer/docker").iterdir()] == [OTHER]


@pytest.mark.parametrize("there", [True, False])
async def test_a_shim_goes_also_where_containerd_is_of_no_help(
    shims: "dict[str, subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        put_ctr(tmp_path, monkeypatch, shims[ID].pid, works=False)
    elif shutil.which("ctr"):
        monkeypatch.setenv("PATH", str(tmp_path))
    await cleared.clear(Shell(), ID)
    assert shims[ID].wait(5) == -9
    assert shims[OTHER].poll() is None


async def test_a_shim_that_ends_by_itself_is_left_to_it(
    shims: "dict[str, subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = put_ctr(tmp_path, monkeypatch, shims[ID].pid, works=True)
    shims[ID].terminate()
    await cleared.clear(Shell(), ID)
    assert not said.exists()
    assert shims[ID].wait(5) == -15
