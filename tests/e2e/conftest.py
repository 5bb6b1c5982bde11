"""Hosts for the end-to-end tests: real dockerds, real CRIU, a real broker. Each kind is brought up once."""

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from agent.doors.docker import Docker
from lab import Host, Lab
from lab.cluster import Cluster
from lab.host import Engine, HostSpec
from lab.shell import LabError
from tests.e2e.archives import KEEPS_AGENT
from tests.e2e.engines import CGROUP2, HOLD, HOSTS, NAME, door
from tests.e2e.fidelity import PAIR_AGENT

D26, D28 = Engine.DOCKER26, Engine.DOCKER28


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.lab)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="the lab needs root"))


def _up(name: str, *specs: HostSpec, agent: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """With TRANSSHIP_LAB_KEEP in the environment a standing one is taken, and left standing afterwards."""
    keep = bool(os.environ.get("TRANSSHIP_LAB_KEEP"))
    try:
        cluster = Cluster.load(name) if keep else None
    except LabError:
        cluster = None
    cluster = cluster or Cluster.up(name, specs, agent=agent)
    try:
        yield cluster
    finally:
        if not keep:
            cluster.lab.down()


_MOVES = (
    HostSpec("a26", D26),
    HostSpec("b26", D26),
    HostSpec("a28", D28),
    HostSpec("b28", D28),
    HostSpec("c28", D28, containerd_store=True),
)


@pytest.fixture(scope="session")
def moves() -> Iterator[Cluster]:
    """Every engine twice, and one host with the containerd image store.

    An emulated machine has room for two: those that TRANSSHIP_LAB_HOSTS names, for the tests that need no other.
    """
    wanted = os.environ.get("TRANSSHIP_LAB_HOSTS")
    yield from _up("moves", *(spec for spec in _MOVES if wanted is None or spec.name in wanted.split(",")))


@pytest.fixture(scope="session")
def pair() -> Iterator[Cluster]:
    """Both engines, plain (a26, b28) and with userns-remap (u26, v28); bind mounts may be copied below /srv/copied."""
    yield from _up(
        "pair",
        HostSpec("a26", D26),
        HostSpec("b28", D28),
        HostSpec("u26", D26, userns_remap=True),
        HostSpec("v28", D28, userns_remap=True),
        agent=PAIR_AGENT,
    )


@pytest.fixture(scope="session")
def keeps() -> Iterator[Cluster]:
    """Both engines, and the older one twice, for checkpoints; a26 may have a registry."""
    yield from _up("keeps", HostSpec("a26", D26), HostSpec("b28", D28), HostSpec("c26", D26), agent=KEEPS_AGENT)


@pytest.fixture(scope="module")
def kinds() -> Iterator[Cluster]:
    """Both engines with userns-remap, one with the containerd image store, and a plain one."""
    yield from _up(
        "kinds",
        HostSpec("u26", D26, userns_remap=True),
        HostSpec("v28", D28, userns_remap=True),
        HostSpec("s28", D28, containerd_store=True),
        HostSpec("p26", D26),
    )


@pytest.fixture(scope="module")
def version2() -> Iterator[Cluster]:
    """Both engines, with cgroup v2 alone, where stopped processes can be dumped too."""
    yield from _up("objects", HostSpec("v26", D26, cgroup2=True), HostSpec("v28", D28, cgroup2=True))


@pytest.fixture(scope="session")
def three() -> Iterator[Cluster]:
    """One host that is emptied and filled again, and two that take what it has."""
    yield from _up("three", HostSpec("a28", D28), HostSpec("b28", D28), HostSpec("c26", D26))


@pytest.fixture(scope="session")
def seen() -> Iterator[Cluster]:
    """Both engines, for what is shown of them: figures on a port of their own."""
    yield from _up("seen", HostSpec("host-a", D26), HostSpec("host-b", D28), agent={"http": {"port": 9469}})


@pytest.fixture(scope="session")
def programs() -> Iterator[Cluster]:
    """With userns-remap, so that programs of several users can be dumped in namespaces (facts.md)."""
    yield from _up("programs", HostSpec("u26", D26, userns_remap=True), HostSpec("u28", D28, userns_remap=True))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """No agents: every engine and image store, with an OCI runtime `hold`, for what asks dockerd itself."""
    with Lab.up(NAME, [*HOSTS, CGROUP2]) as lab:
        for host in lab.hosts.values():
            host.ensure_image("busybox")
            host.ensure_image("py")
            host.node.write("/usr/local/bin/hold", HOLD, 0o755)
            configuration = json.loads(host.node.read("/etc/docker/daemon.json"))
            configuration["runtimes"] = {"hold": {"path": "/usr/local/bin/hold"}}
            host.node.write("/etc/docker/daemon.json", json.dumps(configuration), 0o644)
            host.run(["sh", "-c", "kill -HUP $(cat /run/docker.pid)"])
        yield lab


@pytest.fixture(params=[found.name for found in HOSTS])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab[request.param]


@pytest.fixture
async def docker(host: Host) -> AsyncIterator[Docker]:
    async with door(host) as found:
        yield found
        for row in await found.list():
            await found.remove(row.id, volumes=True)
