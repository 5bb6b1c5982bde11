"""The copy of a rehearsal, as its target makes it: nobody takes it for the container, and no network sees it. Pure."""

from dataclasses import replace

from agent.base.errors import Refused
from agent.migration import fitting
from agent.migration.admission import Reserved
from protocol.errors import ErrorCode
from protocol.peer import Network, Offer

LABEL = "transship.rehearsal"


def check_may_run(offer: Offer) -> None:
    """Raises Refused for the copy of a rehearsal: its original runs."""
    if offer.rehearsal:
        raise Refused(ErrorCode.TOO_LATE, f"{offer.container} is the copy of a rehearsal: it never runs")


def offer_of(offer: Offer) -> Offer:
    """The offer for a copy that nobody can take for the container, and that no network sees."""
    name = f"{offer.container}.rehearsal-{offer.migration.removeprefix('m-')}"
    host = fitting.host_config(offer.create)
    sysctls = {key: value for key, value in (host.get("Sysctls") or {}).items() if not fitting.OF_ETH0.match(key)}
    apart = {"NetworkMode": "none", "PortBindings": {}, "PublishAllPorts": False, "Links": None, "Sysctls": sysctls}
    create = {
        **offer.create,
        "Labels": {LABEL: offer.migration},
        "ExposedPorts": {},
        "HostConfig": {**host, **apart, "RestartPolicy": {"Name": "no"}},
        "NetworkingConfig": {"EndpointsConfig": {}},
    }
    addresses = tuple(address for network in offer.networks for address in network.addresses)
    nowhere = Network(name="none", driver="null", addresses=addresses)
    changes = {
        "container": name,
        "create": create,
        "networks": (nowhere,),
        "pinned": {},
        "listening": (),
        "restart_policy": {"Name": "no"},
        "home": None,
    }
    return offer.model_copy(update=changes)


def promised(offer: Offer, need: Reserved) -> Reserved:
    """What it takes of the host: room, but no name, port or address that the container has."""
    return replace(need, container=offer_of(offer).container, published=frozenset(), addresses=frozenset())
