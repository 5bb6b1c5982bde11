"""Clusters for the end-to-end tests: real dockerds, real CRIU, a real broker. Each kind is brought up once."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.host import Engine, HostSpec
from lab.shell import LabError

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


@pytest.fixture(scope="session")
def moves() -> Iterator[Cluster]:
    """Every engine twice, and one host with the containerd image store."""
    yield from _up(
        "moves",
        HostSpec("a26", D26),
        HostSpec("b26", D26),
        HostSpec("a28", D28),
        HostSpec("b28", D28),
        HostSpec("c28", D28, containerd_store=True),
    )


@pytest.fixture(scope="session")
def pair() -> Iterator[Cluster]:
    """Both engines, plain (a26, b28) and with userns-remap (u26, v28); bind mounts may be copied below /srv/copied."""
    yield from _up(
        "pair",
        HostSpec("a26", D26),
        HostSpec("b28", D28),
        HostSpec("u26", D26, userns_remap=True),
        HostSpec("v28", D28, userns_remap=True),
        agent={"bind_copy": ["/srv/copied"], "limits": {"migrations": 8}},
    )


@pytest.fixture(scope="session")
def keeps() -> Iterator[Cluster]:
    """Both engines, and the older one twice, for checkpoints; a26 may have a registry."""
    agent = {"checkpoints": {"insecure_registries": ["a26:5000"]}}
    yield from _up("keeps", HostSpec("a26", D26), HostSpec("b28", D28), HostSpec("c26", D26), agent=agent)


@pytest.fixture(scope="session")
def programs() -> Iterator[Cluster]:
    """With userns-remap, so that programs of several users can be dumped in namespaces (facts.md)."""
    yield from _up("programs", HostSpec("u26", D26, userns_remap=True), HostSpec("u28", D28, userns_remap=True))
