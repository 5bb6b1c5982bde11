"""Emulated machines: what a test can rely on when it boots, uses, restarts and breaks one."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.shell import CommandFailed, LabError
from lab.vm import Machine, Spec, running, running_pair

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no qemu"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machines are x86-64"),
]
SMALL = 1024


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Machine]]:
    with running_pair(Spec("one", SMALL), Spec("two", SMALL)) as machines:
        yield machines


def test_machine_is_a_stock_system(pair: tuple[Machine, Machine]) -> None:
    """Debian's cloud kernel, systemd, cgroup version 2 and nothing else, and a kernel that can track memory."""
    machine, _ = pair
    assert "cloud" in machine.run(["uname", "--kernel-release"]).stdout
    assert machine.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    kinds = machine.run(["findmnt", "--noheadings", "--types", "cgroup,cgroup2", "--output", "FSTYPE"]).stdout
    assert kinds.split() == ["cgroup2"]
    machine.run(["criu", "check", "--feature", "mem_dirty_track"])


def test_output_and_exit_code_come_back(pair: tuple[Machine, Machine]) -> None:
    machine, _ = pair
    heard: list[str] = []
    done = machine.run(["sh", "-c", "cat; echo bad >&2; exit 7"], check=False, input="good\n", output=heard.append)
    assert (done.returncode, done.stdout) == (7, "good\nbad\n")
    assert "".join(heard) == done.stdout
    assert machine.run(["no-such-program"], check=False).returncode == 127
    with pytest.raises(CommandFailed, match="exit code 1"):
        machine.run(["false"])


def test_a_command_that_hangs_is_ended_and_the_machine_goes_on(pair: tuple[Machine, Machine]) -> None:
    machine, _ = pair
    with pytest.raises(CommandFailed, match="took more than 1 s"):
        machine.run(["sleep", "infinity"], timeout=1)
    assert machine.run(["echo", "here"]).stdout == "here\n"


def test_what_a_command_leaves_running_does_not_hold_its_answer(pair: tuple[Machine, Machine]) -> None:
    machine, _ = pair
    assert machine.run(["sh", "-c", "sleep 600 & echo started"]).stdout == "started\n"


def test_one_restarts_with_its_disk_while_the_other_stays_up(pair: tuple[Machine, Machine]) -> None:
    """On one network; the other one reaches it again afterwards."""
    one, two = pair
    reach = ["busybox", "ping", "-c", "1", "-W", "10", "10.78.0.11"]
    two.run(reach)
    boot = two.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    one.run(["sh", "-c", "echo kept >/root/kept"])
    one.reboot()
    assert one.run(["cat", "/root/kept"]).stdout == "kept\n"
    assert one.run(["hostname"]).stdout == "one\n"
    two.run(reach)
    assert two.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout == boot


def test_a_kernel_that_panics_ends_the_machine_and_is_heard(pair: tuple[Machine, Machine]) -> None:
    _, two = pair
    with pytest.raises(LabError, match="has ended"):
        two.run(["sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"])
    assert "sysrq" in two.console()
    two.kill()
    two.start()  # nothing of it was lost but what was not written yet
    two.poweroff()
    assert not two.running()


def test_a_machine_that_could_not_start_leaves_nothing() -> None:
    spec = Spec("broken", files=Path("/no/such/file"))
    with pytest.raises(LabError, match="has ended"), running(spec):
        pass
    assert not Machine(spec).place.exists()
