"""A whole host with systemd that is shut down, boots again, and goes on: its containers are the same programs still."""

import os
import platform
import shutil
import time
from collections.abc import Iterator

import pytest

from lab.vm.installed import Installed, hosts
from lab.workloads import COUNTER

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no qemu"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machines are x86-64"),
]
HIBERNATES = ("--runtime", "transship", "--label", "transship.on-shutdown=hibernate")
# What it was told, it has in memory only: once a second it says so.
KEEPER = """
import os, time
from pathlib import Path
token, began = os.urandom(8).hex(), 0
while True:
    began += 1
    print(token, began, flush=True)
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Installed]:
    with hosts("one") as (one,):
        one.ensure_image("py")
        yield one


def said(host: Installed, name: str) -> list[str]:
    return host.docker("logs", name).splitlines()


def until_it_says_more(host: Installed, name: str, than: int) -> list[str]:
    end = time.monotonic() + 120
    while len(lines := said(host, name)) <= than:
        assert time.monotonic() < end, f"{name} says nothing more: {lines[-3:]}\n{host.journal()[-3000:]}"
        time.sleep(0.5)
    return lines


def test_a_host_is_powered_off_and_its_containers_go_on_after_the_boot(host: Installed) -> None:
    """One that Docker would start by its policy, and one that it would not; a restart of the agent touches neither."""
    program = COUNTER.format(mib=8, pause=0.05)
    host.docker("run", "-d", "--name", "counter", *HIBERNATES, "--restart", "always", "py", "python3", "-c", program)
    host.docker("run", "-d", "--name", "keeper", *HIBERNATES, "py", "python3", "-c", KEEPER)
    host.docker("run", "-d", "--name", "left", "--restart", "always", "py", "python3", "-c", KEEPER)
    until_it_says_more(host, "counter", 5)
    [token] = {line.split()[0] for line in until_it_says_more(host, "keeper", 1)}
    pids = "docker inspect -f '{{.State.Pid}}' counter keeper left"
    before = host.run(["sh", "-c", pids]).stdout
    host.run(["systemctl", "restart", "transship-agent.service"], timeout=120)
    assert host.run(["sh", "-c", pids]).stdout == before

    last = len(said(host, "counter"))
    host.machine.poweroff(timeout=300)
    host.machine.start()
    host.wait_until_up()

    numbers = [int(line) for line in until_it_says_more(host, "counter", last + 5)]
    assert numbers == list(range(1, len(numbers) + 1))
    kept = until_it_says_more(host, "keeper", 3)
    assert {line.split()[0] for line in kept} == {token}
    assert len({line.split()[0] for line in said(host, "left")}) == 2, "it has no label: it was started anew"
    # both a moment after the start
    policy = "docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' counter keeper; ls /var/lib/transship/hibernated"
    end = time.monotonic() + 60
    while (there := host.run(["sh", "-c", policy]).stdout.split()) != ["always", "no", "poke", "said"]:
        assert time.monotonic() < end, there
        time.sleep(0.5)
    assert "ready to go down" in host.journal()
