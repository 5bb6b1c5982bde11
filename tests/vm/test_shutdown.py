"""Whole hosts with systemd: one is shut down, boots again, and goes on, and what was to leave it runs on the other.

Tests go on where the one before has left the hosts: each boot costs half a minute.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from lab.service import PROGRAM
from lab.shell import PATIENCE, LabError
from lab.vm.installed import NEWER, UNIT, Installed, hosts
from lab.workloads import COUNTER

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no qemu"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machines are x86-64"),
]
LONG = pytest.mark.skipif(
    not os.environ.get("TRANSSHIP_VM_LONG"), reason="takes minutes more of emulation: TRANSSHIP_VM_LONG=1 runs it"
)
HIBERNATES = ("--runtime", "transship", "--label", "transship.on-shutdown=hibernate")
WHEN_STOPPED = ("--stop-signal", "SIGURG", "--stop-timeout", "120")
LEAVES = ("--runtime", "transship", "--label", "transship.on-shutdown=evacuate", "--restart", "always")
COUNTS = ("python3", "-c", COUNTER.format(mib=8, pause=0.05))
# Says once a second what it has in memory only.
KEEPER = """
import os, time
token, began = os.urandom(8).hex(), 0
while True:
    began += 1
    print(token, began, flush=True)
    time.sleep(1)
"""
STAY = ("counter", "cache", "left")


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Installed, Installed]]:
    with hosts("one", "two", images=("redis",)) as (one, other):
        one.ensure_image("py")
        one.ensure_image("redis")
        one.docker("run", "-d", "--name", "counter", *HIBERNATES, "--restart", "always", "py", *COUNTS)
        memory_only = ["redis-server", "--save", "", "--appendonly", "no"]
        one.docker("run", "-d", "--name", "cache", *HIBERNATES, *WHEN_STOPPED, "redis", *memory_only)
        one.docker("run", "-d", "--name", "leaves", *LEAVES, "py", *COUNTS)
        one.docker("run", "-d", "--name", "left", "--restart", "always", "py", "python3", "-c", KEEPER)
        yield one, other


def until(so: Callable[[], bool], what: str, *, of: Installed, seconds: float = 120) -> None:
    end = time.monotonic() + seconds * PATIENCE
    while not so():
        if time.monotonic() > end:
            raise LabError(f"not within {seconds * PATIENCE:g} s: {what}\n{of.journal()[-4000:]}")
        time.sleep(0.5)


def said(host: Installed, name: str) -> list[str]:
    return host.docker("logs", name).splitlines()


def counted(host: Installed, name: str) -> int:
    """How far it has counted; each number must have come once."""
    numbers = [int(line) for line in said(host, name) if line]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


def redis(host: Installed, *words: str) -> str:
    return host.docker("exec", "cache", "redis-cli", *words)


def pids(host: Installed) -> str:
    return host.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", *STAY)


def about_agent(host: Installed, what: str) -> str:
    return host.run(["systemctl", "show", f"--property={what}", "--value", UNIT]).stdout.strip()


def test_a_host_is_powered_off_and_after_its_boot_nothing_is_lost_and_nothing_is_there_twice(
    two: tuple[Installed, Installed],
) -> None:
    """A counter goes on, a redis has what it had in memory only, and the third one has gone on, on the other host."""
    one, other = two
    until(lambda: len(said(one, "left")) > 1, "they are there", of=one)
    redis(one, "SET", "kept", "in memory only")
    redis(one, "LPUSH", "list", "a", "b", "c")
    last = {name: counted(one, name) for name in ("counter", "leaves")}
    one.machine.poweroff(timeout=300)
    until(lambda: counted(other, "leaves") > last["leaves"], "it goes on there", of=other)
    last["leaves"] = counted(other, "leaves")
    one.machine.start()
    one.wait_until_up()
    until(lambda: counted(one, "counter") > last["counter"] + 5, "it goes on", of=one)
    until(lambda: one.docker("inspect", "-f", "{{.State.Running}}", "cache") == "true", "redis is there", of=one)
    assert redis(one, "GET", "kept") == "in memory only"
    assert redis(one, "LRANGE", "list", "0", "-1").split() == ["c", "b", "a"]
    assert "leaves" not in one.docker("ps", "--all", "--format", "{{.Names}}").split()
    assert counted(other, "leaves") > last["leaves"]
    until(lambda: len({line.split()[0] for line in said(one, "left")}) == 2, "without a label it is new", of=one)

    def after_it() -> bool:
        policy = "docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' counter cache"
        left = one.run(["sh", "-c", f"{policy}; ls /var/lib/transship/hibernated"]).stdout.split()
        return left == ["always", "no", "poke", "said"]

    until(after_it, "both have their own policy, and nothing sleeps any more", of=one)
    assert "ready to go down" in one.journal()


@LONG
def test_where_logind_hardly_waits_the_agent_is_given_the_time_when_it_is_stopped(
    two: tuple[Installed, Installed],
) -> None:
    """As without the drop-in of `transship setup`; systemd is asked for more time as long as it goes on."""
    one, _ = two
    write(one, "/etc/systemd/logind.conf.d/90-short.conf", "[Login]\nInhibitDelayMaxSec=1\n")
    one.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"])
    until(lambda: most_delay(one) == "t 1000000", "logind has read it", of=one)
    write(one, f"/run/systemd/system/{UNIT}.d/soon.conf", "[Service]\nTimeoutStopSec=15\n")
    one.run(["systemctl", "daemon-reload"])
    last = counted(one, "counter")
    one.machine.reboot(timeout=300)
    one.wait_until_up()
    until(lambda: counted(one, "counter") > last + 5, "it goes on", of=one)
    until(lambda: one.docker("inspect", "-f", "{{.State.Running}}", "cache") == "true", "redis is there", of=one)
    assert redis(one, "GET", "kept") == "in memory only"
    assert "timed out" not in one.journal(), "as systemd says of what it has to kill"
    one.run(["rm", "/etc/systemd/logind.conf.d/90-short.conf"])
    one.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"])


def write(host: Installed, file: str, content: str) -> None:
    host.run(["sh", "-c", 'mkdir -p "${1%/*}"; cat >"$1"', "write", file], input=content)


@LONG
def test_an_agent_that_is_restarted_upgraded_or_hangs_touches_no_container(two: tuple[Installed, Installed]) -> None:
    """The last one is ended by systemd's watchdog, whom its event loop does not tell any more that it is alive."""
    one, _ = two
    before = pids(one)
    one.upgrade()
    drop_in = f"/run/systemd/system/{UNIT}.d/soon.conf"
    write(one, drop_in, "[Service]\nWatchdogSec=20\n")
    one.run(["systemctl", "daemon-reload"])
    one.run(["systemctl", "restart", UNIT], timeout=120)
    about = {row["host"]: row for row in map(json.loads, one.transship("hosts", "--json").stdout.splitlines())}
    assert about["one"]["agent_version"] == NEWER
    assert pids(one) == before
    hangs = about_agent(one, "MainPID")
    time_of = about_agent(one, "WatchdogTimestampMonotonic")
    until(lambda: about_agent(one, "WatchdogTimestampMonotonic") != time_of, "it says that it is alive", of=one)
    one.run(["kill", "-STOP", hangs])
    until(lambda: about_agent(one, "SubState") == "stop-watchdog", "systemd misses its word", of=one)
    one.run(["kill", "-CONT", hangs])
    until(lambda: about_agent(one, "SubState") == "running", "there is another one", of=one)
    assert about_agent(one, "MainPID") != hangs
    assert about_agent(one, "NRestarts") == "1"
    assert pids(one) == before
    one.run(["rm", "-r", drop_in.rpartition("/")[0]])
    one.run(["systemctl", "daemon-reload"])


@LONG
def test_what_setup_has_put_on_a_host_is_there_and_goes_again(two: tuple[Installed, Installed]) -> None:
    one, _ = two
    assert "transship" in one.run(["systemd-inhibit", "--list"]).stdout
    assert most_delay(one) == "t 180000000"
    one.docker("rm", "--force", *one.docker("ps", "--all", "--quiet").split())
    one.run([PROGRAM, "setup", "--remove", "--purge"], timeout=120)
    assert most_delay(one) == "t 5000000", "logind's own"
    files = "find /etc /usr/local /var/lib/transship /run/transship -name '*transship*' -not -name 'transship-guest*'"
    assert one.run(["sh", "-c", f"{files} 2>/dev/null || true"]).stdout.split() == []
    assert "transship" not in one.docker("info", "--format", "{{json .Runtimes}}")
    assert one.run(["systemctl", "is-active", UNIT], check=False).stdout.strip() == "inactive"


def most_delay(host: Installed) -> str:
    """As logind has it."""
    where = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
    return host.run(["busctl", "get-property", *where, "InhibitDelayMaxUSec"]).stdout.strip()
