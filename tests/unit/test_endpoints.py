"""Stale endpoints: which they are, and that none of a container that is there is ever taken for one."""

import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.doors import docker_model
from agent.doors.docker import Docker
from agent.doors.docker_model import Network, Summary
from agent.migration import endpoints
from tests.unit import moves
from tests.unit.pretended_dockerd import Dockerd

GONE, OTHER = "a" * 64, "b" * 64


def network(scope: str = "local", **ends: str) -> Network:
    """By the holder of each endpoint its name."""
    return docker_model.network(raw(scope, **ends))


def raw(scope: str = "local", **ends: str) -> dict[str, Any]:
    held = {
        holder.replace("_", "-"): {"Name": name, "IPv4Address": f"10.9.0.{number}/24", "IPv6Address": ""}
        for number, (holder, name) in enumerate(ends.items(), 7)
    }
    return {"Id": "n1", "Name": "net", "Driver": "macvlan", "Scope": scope, "Containers": held}


def container(one: str, name: str) -> Summary:
    return docker_model.summary({"Id": one, "Names": [f"/{name}"], "State": "exited", "Labels": None})


@pytest.mark.parametrize("holder", [GONE, "ep_0c1d"])
def test_an_endpoint_that_no_container_has_is_stale(holder: str) -> None:
    here = network(**{holder: "web", OTHER: "db"})
    others = [container(OTHER, "db")]
    assert [end.name for end in endpoints.stale(here, "web", others)] == ["web"]
    assert endpoints.without_stale(here, "web", others).addresses == ("10.9.0.8/24",)
    assert here.addresses == ("10.9.0.7/24", "10.9.0.8/24")


@pytest.mark.parametrize(
    ("here", "name", "containers"),
    [
        (network(**{GONE: "web"}), "web", [container(GONE, "web")]),
        (network(**{GONE: "web"}), "web", [container(OTHER, "web")]),
        (network(**{GONE: "web"}), "web", [container(GONE, "renamed")]),
        (network(**{GONE: "bbb"}), "bbb", [container(OTHER, "db")]),
        (network(**{GONE: "web"}), "db", []),
        (network("swarm", **{GONE: "web"}), "web", []),
        (network(ingress_sbox="gateway"), "gateway", []),
    ],
    ids=["its own", "name taken", "its holder is there", "an id begins so", "another name", "of Swarm", "Swarm's own"],
)
def test_an_endpoint_that_may_be_somebodys_is_not(here: Network, name: str, containers: list[Summary]) -> None:
    assert endpoints.stale(here, name, containers) == ()
    assert endpoints.without_stale(here, name, containers) == here


async def test_a_stale_endpoint_is_removed_by_force_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dockerd = Dockerd(tmp_path / "d.sock")
    dockerd.on("GET /networks/net", raw(**{GONE: "web", OTHER: "db"}))
    dockerd.on("GET /containers/json", [{"Id": OTHER, "Names": ["/db"], "State": "running", "Labels": {}}])
    bodies: list[Any] = []

    async def disconnect(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response()

    dockerd.on("POST /networks/n1/disconnect", disconnect)
    await dockerd.start()
    try:
        async with Docker(dockerd.url, timeout=5) as docker:
            with caplog.at_level(logging.WARNING, "agent.target"):
                await endpoints.clear(docker, moves.offer(networks=[{"name": "net", "driver": "macvlan"}]))
    finally:
        await dockerd.stop()
    assert bodies == [{"Container": "web", "Force": True}]
    assert [record.getMessage() for record in caplog.records] == [
        "removed from the network net: the endpoint of web, which no container has"
    ]
