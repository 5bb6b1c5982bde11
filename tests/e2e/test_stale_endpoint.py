"""A dockerd that was killed while a container ended has kept its endpoint: one of that name can come all the same."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.macvlan import NETWORK, Place, ensure_network
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from tests.e2e.support import clean, counts_on, until

A = "a26"
NAME = "stale"
PLACE = Place(140)
ATTEMPTS = 10
SAID = f"the endpoint of {NAME}, which no container has"
SETTINGS = "/etc/docker/daemon.json"


@contextlib.asynccontextmanager
async def live_restore(host: Host) -> AsyncIterator[None]:
    settings = host.node.read(SETTINGS)

    async def say(value: bool) -> None:
        host.node.write(SETTINGS, json.dumps({**json.loads(settings), "live-restore": value}), 0o644)
        host.run(["sh", "-c", "kill -HUP $(cat /run/docker.pid)"])
        said = json.dumps(value)
        await until(lambda: host.docker("info", "-f", "{{.LiveRestoreEnabled}}") == said, f"live-restore is {said}")

    await say(True)
    try:
        yield
    finally:
        await say(False)  # said, since a key that is gone from the file keeps its value
        host.node.write(SETTINGS, settings, 0o644)


def endpoints(host: Host) -> dict[str, dict[str, str]]:
    [network] = json.loads(host.docker("network", "inspect", NETWORK))
    found: dict[str, dict[str, str]] = network["Containers"]
    return found


def starts(host: Host) -> int:
    return host.node.log("dockerd").count("Loading containers: start")


async def leave_endpoint(host: Host) -> None:
    """A container that ends after the next dockerd has found it running, and before that one has its networks."""
    for _ in range(ATTEMPTS):
        host.docker("run", "-d", "--name", NAME, *PLACE.options, "busybox", "sleep", "600")
        await end_while_dockerd_starts(host, host.docker("inspect", "-f", "{{.State.Pid}}", NAME))
        host.docker("rm", "--force", NAME)
        if endpoints(host):
            return
    raise AssertionError(f"no endpoint has stayed in {ATTEMPTS} attempts")


async def end_while_dockerd_starts(host: Host, pid: str) -> None:
    before = starts(host)
    host.kill_dockerd()
    host.start_dockerd(wait=False)
    await until(lambda: starts(host) > before, "dockerd has begun with its containers")
    host.run(["kill", "-9", pid])
    host.wait_for_docker()


@pytest.mark.parametrize("target", ["b26", "b28"])
async def test_a_container_comes_to_where_an_endpoint_of_its_name_and_address_was_left(
    moves: Cluster, target: str
) -> None:
    source, there = moves[A], moves[target]
    for host in (source, there):
        host.ensure_image("busybox")
        ensure_network(host)
    async with live_restore(there):
        await leave_endpoint(there)
    await moves.until_ready()
    try:
        again = there.run(["docker", "run", "--rm", "--name", NAME, "--network", NETWORK, "busybox"], check=False)
        assert "already exists in network" in again.stderr, "Docker itself is not done with it"
        there.docker("rm", "--force", NAME)
        run_counter(source, NAME, *PLACE.options)
        said = there.agent_log().count(SAID)
        reply = await moves.migrate(NAME, A, target)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        await counts_on(there, NAME)
        [end] = endpoints(there).values()
        assert end["IPv4Address"].partition("/")[0] == PLACE.v4
        assert there.agent_log().count(SAID) == said + 1
    finally:
        for host in (source, there):
            host.docker("rm", "--force", NAME)
            host.docker("network", "disconnect", "--force", NETWORK, NAME, check=False)
    await clean(moves, A, target)
