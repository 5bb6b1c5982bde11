"""Nothing of a lab is left on this machine, however it ended; nothing of another's is taken for its own."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import Engine, HostSpec, Lab, shell
from lab.lab import remove
from lab.naming import CGROUP, state_folder
from lab.network import Namespace
from lab.service import Mode
from tests.e2e.lab_support import CHECKOUT, OTHER, start_counter


def left_of(name: str) -> list[str]:
    """List whatever of a lab is still on this machine."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{name}/" in line]
    files = [*Path("/sys/fs/cgroup").glob(f"**/{CGROUP}/{name}"), *state_folder().glob(f"{name}*")]
    files += [space.path for space in Namespace.all_of(name)]
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            dead = "\nState:\tZ" in (folder / "status").read_text()  # v2 still shows its cgroup
            if not dead and f"/{CGROUP}/{name}/" in (folder / "cgroup").read_text():
                processes.append((folder / "cmdline").read_text())
    return [*mounts, *map(str, files), *processes]


def test_a_lab_with_the_agent_installed_leaves_nothing_after_down() -> None:
    lab = Lab.up(OTHER, [HostSpec("one")], mode=Mode.INSTALL)
    try:
        code = "import agent, importlib.metadata as m; print(agent.__file__, m.version('transship'))"
        told = lab["one"].run(["/opt/transship/bin/python", "-c", code]).stdout
        assert told.startswith("/opt/transship/lib/")
        start_counter(lab["one"], "paused")
        lab["one"].docker("pause", "paused")
        assert left_of(OTHER) != []
        relay = shell.Proc.read(state_folder() / OTHER / "broker/relay.pid")
    finally:
        lab.down()
    assert left_of(OTHER) == []
    assert relay is not None
    assert not relay.alive()


@pytest.mark.parametrize("delay", [0.1, 0.4, 0.8, 5])
def test_what_a_killed_up_left_is_removed(delay: float) -> None:
    up = [sys.executable, "-m", "lab", "--lab", OTHER, "up", "--host", "one=docker26"]
    process = subprocess.Popen(up, cwd=CHECKOUT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        with Lab.up(OTHER, [HostSpec("two", Engine.DOCKER26)]) as lab:
            assert lab["two"].docker("ps", "--quiet") == ""
            assert list(lab.hosts) == ["two"]
    finally:
        remove(OTHER)
    assert left_of(OTHER) == []


def test_another_processs_number_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()} 1\n")
    assert shell.Proc.read(tmp_path / "pid") is None
    mine = shell.Proc.of(os.getpid())
    assert mine is not None
    mine.write(tmp_path / "pid")
    assert shell.Proc.read(tmp_path / "pid") == mine
