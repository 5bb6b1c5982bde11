"""Whole hosts with systemd: one is shut down, boots again, and goes on, and what was to leave it runs on the other.

Tests go on where the one before has left the hosts: each boot costs half a minute.
"""

import json
import os
import platform
import re
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
TIMES = 20 if os.environ.get("TRANSSHIP_VM_LONG") else 1
HIBERNATES = ("--runtime", "transship", "--label", "transship.on-shutdown=hibernate")
WHEN_STOPPED = ("--stop-signal", "SIGURG", "--stop-timeout", "120")
LEAVES = ("--runtime", "transship", "--label", "transship.on-shutdown=evacuate", "--restart", "always")
PYTHON = ("python3", "-c")
COUNTS = (*PYTHON, COUNTER.format(mib=8, pause=0.05))
# Says once a second what it has in memory only.
KEEPER = """
import os, time
token, began = os.urandom(8).hex(), 0
while True:
    began += 1
    print(token, began, flush=True)
    time.sleep(1)
"""
# Has 3 GB for whoever plans by what its pages are, of which 50 MB are not the same ones again.
LARGE = """
import mmap, os
file, size = os.memfd_create("large"), 50_000_000
os.truncate(file, size)
often = [mmap.mmap(file, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ) for _ in range(60)]
""" + COUNTER.format(mib=8, pause=0.05)
STAY = ("counter", "cache", "left")
STOP_SECONDS = 5


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


def pids(host: Installed, *names: str) -> str:
    return host.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", *(names or STAY))


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
def test_where_logind_hardly_waits_and_the_time_is_too_short_for_all(two: tuple[Installed, Installed]) -> None:
    """As without the drop-in of `transship setup`: the agent is given its time when systemd stops it, and asks for more
    than its unit has as long as it goes on. What has no time to be moved is hibernated, what has none for that stopped.
    """
    one, _ = two
    write(one, "/etc/systemd/logind.conf.d/90-short.conf", "[Login]\nInhibitDelayMaxSec=1\n")
    one.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"])
    until(lambda: most_delay(one) == "t 1000000", "logind has read it", of=one)
    drop_in = f"/run/systemd/system/{UNIT}.d"
    write(one, f"{drop_in}/seconds.conf", "[Service]\nEnvironment=TRANSSHIP_SHUTDOWN__SECONDS=60\n")
    one.run(["systemctl", "daemon-reload"])
    one.run(["systemctl", "restart", UNIT], timeout=300)
    write(one, f"{drop_in}/soon.conf", f"[Service]\nTimeoutStopSec={STOP_SECONDS}\n")
    one.run(["systemctl", "daemon-reload"])
    # of 61 s, to move 3 GB takes 64 at 50 MB/s, to write them 31 at 100; as many more are not written in time
    one.docker("run", "-d", "--name", "asleep", *LEAVES, "--label", "transship.priority=1", "py", *PYTHON, LARGE)
    one.docker("run", "-d", "--name", "ended", *HIBERNATES, "--restart", "always", "py", *PYTHON, LARGE)
    until(lambda: all(said(one, name) for name in ("asleep", "ended")), "they count", of=one)
    last = {name: counted(one, name) for name in ("counter", "asleep")}
    one.machine.reboot(timeout=300)
    one.wait_until_up()
    for name in last:
        until(lambda name=name: counted(one, name) > last[name] + 5, "it goes on", of=one)
    until(lambda: one.docker("inspect", "-f", "{{.State.Running}}", "cache") == "true", "redis is there", of=one)
    assert redis(one, "GET", "kept") == "in memory only"
    until(lambda: said(one, "ended").count("1") == 2, "it is new", of=one)
    [plan] = re.findall("host is being shut down: 4 containers in .*", one.journal())
    assert "asleep: hibernate (no time to evacuate)" in plan
    assert "ended: stop (no time to hibernate)" in plan
    print(plan, *re.findall("ready to go down.*", one.journal()), sep="\n")
    assert "timed out" not in one.journal(), "as systemd says of what it has to kill"
    assert seconds_to_stop(one) > STOP_SECONDS
    one.docker("rm", "--force", "asleep", "ended")
    one.run(["rm", "/etc/systemd/logind.conf.d/90-short.conf"])
    one.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"])


def seconds_to_stop(host: Installed) -> float:
    """How long the end of the agent took when the host went down for the last time."""
    about = ["--boot=-1", f"--unit={UNIT}", "--output=json", "--output-fields=MESSAGE", "--no-pager"]
    lines = [json.loads(line) for line in host.run(["journalctl", *about]).stdout.splitlines()]
    at = {
        word: int(line["__MONOTONIC_TIMESTAMP"])
        for line in lines
        for word in ("Stopping", "Stopped")
        if str(line["MESSAGE"]).startswith(f"{word} {UNIT}")
    }
    return (at["Stopped"] - at["Stopping"]) / 1e6


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
    one.run(["kill", "-STOP", hangs])  # systemd lets it go on to end it
    until(lambda: about_agent(one, "NRestarts") == "1", "systemd misses its word", of=one)
    until(lambda: about_agent(one, "SubState") == "running", "there is another one", of=one)
    assert about_agent(one, "MainPID") != hangs
    assert "watchdog" in one.journal().lower()
    assert pids(one) == before
    one.run(["rm", "-r", drop_in.rpartition("/")[0]])
    one.run(["systemctl", "daemon-reload"])


def test_what_hibernates_is_stopped_and_started_again_and_again(two: tuple[Installed, Installed]) -> None:
    """Nothing of its count is missing, nothing comes twice, and no stop takes as long as its timeout."""
    one, _ = two
    again(one)
    for _ in range(TIMES):
        one.docker("stop", "again", timeout=100)
        last = counted(one, "again")
        one.docker("start", "again")
        until(lambda last=last: counted(one, "again") > last + 3, "it counts on", of=one)
    said_by_it = ["ls", "-A", "/var/lib/transship/hibernated/said"]
    until(lambda: one.run(said_by_it).stdout == "", "all was told", of=one)


def again(host: Installed) -> None:
    """A counter that whatever stops it hibernates."""
    if host.run(["docker", "inspect", "again"], check=False).returncode:
        words = ("--name", "again", *HIBERNATES, *WHEN_STOPPED, "--restart", "unless-stopped", "py", *COUNTS)
        host.docker("run", "-d", *words)
        until(lambda: len(said(host, "again")) > 3, "it counts", of=host)


@LONG
def test_dockerd_that_is_restarted_hibernates_and_wakes_it_and_with_live_restore_it_is_left_alone(
    two: tuple[Installed, Installed],
) -> None:
    one, _ = two
    again(one)
    redis(one, "SET", "again", "in memory only")
    last, before = counted(one, "again"), pids(one, "again")
    one.run(["systemctl", "restart", "docker.service"], timeout=200)
    until(lambda: counted(one, "again") > last + 3, "it counts on", of=one)
    assert pids(one, "again") != before
    one.docker("start", "cache")  # it has no policy by which dockerd would
    assert redis(one, "GET", "again") == "in memory only"
    settings = json.loads(one.run(["cat", "/etc/docker/daemon.json"]).stdout)
    for on in (True, False):
        write(one, "/etc/docker/daemon.json", json.dumps(settings | {"live-restore": on}))
        one.run(["systemctl", "reload", "docker.service"])
        shown = ("info", "--format", "{{.LiveRestoreEnabled}}")
        until(lambda on=on, shown=shown: one.docker(*shown) == str(on).lower(), "dockerd has read it", of=one)
        if on:
            last, before = len(said(one, "again")), pids(one, "again", "cache")
            one.run(["systemctl", "restart", "docker.service"], timeout=200)
            until(lambda last=last: len(said(one, "again")) > last + 3, "it counts on", of=one)
            assert pids(one, "again", "cache") == before


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
