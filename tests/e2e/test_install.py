"""From a wheel, as a user installs it; and by the command line, as a user moves a container."""

import json
from collections.abc import Iterator

import pytest

from lab.cluster import TRANSSHIP, Cluster
from lab.host import Engine, HostSpec
from lab.service import Mode
from lab.workloads import run_counter
from tests.e2e.archives import controller
from tests.e2e.support import clean, counts_on

A, B = "ia", "ib"


@pytest.fixture(scope="module")
def installed() -> Iterator[Cluster]:
    specs = [HostSpec(A, Engine.DOCKER28), HostSpec(B, Engine.DOCKER26)]
    cluster = Cluster.up("install", specs, mode=Mode.INSTALL)
    try:
        yield cluster
    finally:
        cluster.lab.down()


def command(cluster: Cluster, *words: str) -> list[dict[str, object]]:
    """The command line on a host, as the controller; its JSON lines."""
    done = cluster[A].run([TRANSSHIP, *words, "--json"], env=controller(cluster), timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


async def test_a_container_moves_by_the_command_line(installed: Cluster) -> None:
    run_counter(installed[A], "moved")
    await counts_on(installed[A], "moved")
    found = installed[A].run(["/opt/transship/bin/python", "-c", "import agent; print(agent.__file__)"]).stdout
    assert "site-packages" in found, "it is the wheel that runs, not the checkout"
    last = command(installed, "migrate", "moved", "--to", B)[-1]
    assert last["ok"], last
    await counts_on(installed[B], "moved")
    await clean(installed, A, B)


async def test_a_container_created_with_the_runtime_is_an_ordinary_one(installed: Cluster) -> None:
    """Every call that is not a migration's is passed on to runc."""
    host = installed[A]
    host.ensure_image("busybox")
    run = ["run", "--runtime", "transship", "--name", "ordinary"]
    assert host.docker(*run, "--rm", "busybox", "echo", "hello") == "hello"
    host.docker(*run, "-d", "busybox", "sleep", "1000")
    assert host.docker("exec", "ordinary", "echo", "inside") == "inside"
    host.docker("pause", "ordinary")
    host.docker("unpause", "ordinary")
    host.docker("stop", "--time", "1", "ordinary")
    host.docker("start", "ordinary")
    host.docker("rm", "--force", "ordinary")
    assert host.docker("run", "--runtime", "transship", "--rm", "busybox", "sh", "-c", "exit 7", check=False) == ""
