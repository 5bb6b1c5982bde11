"""Clusters for the end-to-end tests: real dockerds, real CRIU, a real broker. Each kind is brought up once."""

import os
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.host import Engine, HostSpec

D26, D28 = Engine.DOCKER26, Engine.DOCKER28


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.lab)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="the lab needs root"))


def _up(name: str, *specs: HostSpec) -> Iterator[Cluster]:
    cluster = Cluster.up(name, specs)
    try:
        yield cluster
    finally:
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
def programs() -> Iterator[Cluster]:
    """With userns-remap, so that programs of several users can be dumped in namespaces (facts.md)."""
    yield from _up("programs", HostSpec("u26", D26, userns_remap=True), HostSpec("u28", D28, userns_remap=True))
