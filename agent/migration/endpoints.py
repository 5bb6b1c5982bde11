"""Endpoints on this host's networks that no container has any more, under the name of one that is to come.

A dockerd that is killed while a container ends may keep its endpoint, addresses included, until it starts anew; the
next container of that name is told "endpoint with name web already exists in network".
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace

from agent.doors.docker import Docker
from agent.doors.docker_model import Endpoint, Network, Summary
from protocol.peer import Offer

log = logging.getLogger("agent.target")

HOLDERS = re.compile(r"ep-.+|[0-9a-f]{64}")
"""Not Swarm's own ends, such as `ingress-sbox`."""


def stale(network: Network, name: str, containers: Iterable[Summary]) -> tuple[Endpoint, ...]:
    """Endpoints of that name; none where a container has the name, or an id that Docker would take the name for."""
    known = {found.id: found.name for found in containers}
    if network.scope != "local" or any(name == other or one.startswith(name) for one, other in known.items()):
        return ()
    ends = (end for end in network.endpoints if end.name == name)
    return tuple(end for end in ends if end.holder not in known and HOLDERS.fullmatch(end.holder))


def without_stale(network: Network, name: str, containers: Iterable[Summary]) -> Network:
    """The network as it is once those are cleared: their addresses are free."""
    gone = stale(network, name, containers)
    return replace(network, endpoints=tuple(end for end in network.endpoints if end not in gone))


async def clear(docker: Docker, offer: Offer) -> None:
    """Make sure that no stale endpoint has the container's name; before it is created."""
    for wanted in offer.networks:
        network = await docker.network(wanted.name)
        if network is None or not any(end.name == offer.container for end in network.endpoints):
            continue
        # asked after the network: whoever has an endpoint in what it said is among them
        for end in stale(network, offer.container, await docker.list(all=True)):
            log.warning(
                "removed from the network %s: the endpoint of %s, which no container has", network.name, end.name
            )
            await docker.disconnect(network.id, end.name)
