"""What an offer asks for, as the target's engine and networks can give it: pure functions.

Only what the user left to Docker is ever changed, and each change is a note. What was the user's choice and can't be
had is a reason against the move.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.doors.docker_model import Network
from protocol import peer
from protocol.commands import TcpPolicy
from protocol.errors import Reason, Why
from protocol.reasons import against

ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
OF_ETH0 = re.compile(r"net\.[^.]+\.[^.]+\.eth0\.")
ADDRESS_KEYS = ("IPv4Address", "IPv6Address")

Body = dict[str, Any]
Taken = Collection[tuple[str, str]]
"""Addresses promised to other migrations: network, address."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The body of POST /containers/create for this host, and how it differs."""

    create: Body
    notes: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()


# Networks


def fit_networks(offer: peer.Offer, here: Mapping[str, Network], taken: Taken = ()) -> Fitted:
    """Give up addresses that are not to be had on this host's networks, where the user has not asked for them."""
    body, notes, reasons = offer.create, [], []
    for wanted in offer.networks:
        network = here.get(wanted.name)
        wishes = (_ends(body).get(wanted.name) or {}).get("IPAMConfig") or {}
        for key in ADDRESS_KEYS:
            if network is None or not (address := wishes.get(key)):
                continue
            why = _not_to_be_had(network, address, taken)
            if why is not None and may_give_up(offer, wanted.name, key):
                body = without_addresses(body, {wanted.name: given_up(offer, wanted.name)})
                notes.append(f"it gets another address than {address} on {wanted.name}, where that {why}")
            elif why is not None:
                reasons.append(_address_reason(wanted.name, address, why))
    return Fitted(body, tuple(notes), tuple(reasons))


def may_give_up(offer: peer.Offer, network: str, key: str = "") -> bool:
    """Whether its address on that network may become another; never where connections hang on it."""
    return offer.tcp is not TcpPolicy.KEEP and network in offer.pinned and (not key or key in offer.pinned[network])


def given_up(offer: peer.Offer, network: str) -> tuple[str, ...]:
    """The wishes that go with an address that is not to be had: its MAC address too, if that was made of it.

    Up to 27 Docker makes it so (02:42 and the four bytes), and whoever has the address there may have that one as well.
    """
    end = _ends(offer.create)[network]
    address = (end.get("IPAMConfig") or {}).get("IPv4Address")
    made_of_it = "02:42:" + ipaddress.IPv4Address(address).packed.hex(":") if address else ""
    own = end.get("MacAddress", "").lower() != made_of_it
    return tuple(key for key in offer.pinned[network] if not (own and key == "MacAddress"))


def _not_to_be_had(network: Network, text: str, taken: Taken) -> str | None:
    address = ipaddress.ip_address(text)
    subnets = [entry for entry in (network.raw.get("IPAM") or {}).get("Config") or () if entry.get("Subnet")]
    if not any(address in ipaddress.ip_network(entry["Subnet"], strict=False) for entry in subnets):
        return "is in none of the subnets"
    others = {ipaddress.ip_interface(one).ip for one in network.addresses}
    for entry in subnets:
        kept = [entry.get("Gateway"), *(entry.get("AuxiliaryAddresses") or {}).values()]
        others |= {ipaddress.ip_interface(one).ip for one in kept if one}
    return "is taken" if address in others or (network.name, text) in taken else None


def _address_reason(network: str, address: str, why: str) -> Reason:
    if why == "is taken":
        return against(Why.ADDRESS_TAKEN, f"{address} is taken on {network}")
    return against(
        Why.ADDRESS_OUTSIDE,
        f"its address {address} {why} of the network {network} there",
        "make the network there with the subnet that it has on the source",
    )


def addresses(create: Body) -> frozenset[tuple[str, str]]:
    """What is asked for: network, address."""
    pairs = (
        (name, (end.get("IPAMConfig") or {}).get(key)) for name, end in _ends(create).items() for key in ADDRESS_KEYS
    )
    return frozenset((name, address) for name, address in pairs if address)


def without_addresses(create: Body, given_up: Mapping[str, Collection[str]]) -> Body:
    """The body without these wishes, which are named by network."""
    ends = dict(_ends(create))
    for name, keys in given_up.items():
        end = {key: value for key, value in ends[name].items() if key not in keys}
        ipam = {key: value for key, value in (end.pop("IPAMConfig", None) or {}).items() if key not in keys}
        ends[name] = {**end, "IPAMConfig": ipam} if ipam else end
    return {**create, "NetworkingConfig": {**create["NetworkingConfig"], "EndpointsConfig": ends}}


def network_here(offer: peer.Offer, wanted: peer.Network, existing: Sequence[Network]) -> tuple[Body, str, str]:
    """The body that makes a missing network here; a note if not quite the same; what stands against it.

    Engines refuse subnets that overlap. Which subnet it is matters only to who asked for an address in it.
    """
    body: Body = dict(wanted.create)
    rival = next(filter(None, (_overlap(body, network) for network in existing)), None)
    if rival is None:
        return body, "", ""
    wishes = (_ends(offer.create).get(wanted.name) or {}).get("IPAMConfig") or {}
    if all(may_give_up(offer, wanted.name, key) for key in wishes):
        body["IPAM"] = {**body["IPAM"], "Config": []}
        return body, f"the network {wanted.name} is made with another subnet, since {rival}", ""
    return body, "", f"the network {wanted.name} can't be made there, since {rival}"


def _overlap(body: Body, other: Network) -> str | None:
    theirs = (other.raw.get("IPAM") or {}).get("Config") or ()
    for ours in (body.get("IPAM") or {}).get("Config") or ():
        for entry in theirs if ours.get("Subnet") else ():
            one, another = (ipaddress.ip_network(each["Subnet"], strict=False) for each in (ours, entry))
            if one.version == another.version and one.overlaps(another):
                return f"{one} overlaps with {another} of {other.name}"
    return None


def host_config(create: Mapping[str, Any]) -> Body:
    return create.get("HostConfig") or {}


def _ends(create: Body) -> Mapping[str, Body]:
    """The wishes for each network."""
    ends: Mapping[str, Body] = (create.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
    return ends


# The engine


def fit_engine(create: Body, api: str) -> Fitted:
    """The body as an engine of that API version takes it."""
    if tuple(map(int, api.split("."))) >= (1, 48):
        return Fitted(_sysctls_with_networks(create))
    ends = _ends(create)
    notes = [
        f"the priority of its gateway on {name} is not known to that engine"
        for name, end in ends.items()
        if end.get("GwPriority")
    ]
    first = host_config(create).get("NetworkMode", "")
    notes += [
        f"the settings of its interface on {name} are not known to that engine"
        for name, end in ends.items()
        if name != first and (end.get("DriverOpts") or {}).get(ENDPOINT_SYSCTLS)
    ]
    return Fitted(_sysctls_of_eth0(create, first), tuple(notes))


def _sysctls_with_networks(create: Body) -> Body:
    """Docker 28 takes the settings of an interface with its network only."""
    host, ends = host_config(create), _ends(create)
    sysctls = {key: value for key, value in (host.get("Sysctls") or {}).items() if OF_ETH0.match(key)}
    first = host.get("NetworkMode", "")
    if not sysctls or first not in ends:
        return create
    moved = ",".join(f"{key.replace('.eth0.', '.IFNAME.')}={value}" for key, value in sysctls.items())
    options = ends[first].get("DriverOpts") or {}
    wishes = ",".join(filter(None, (moved, options.get(ENDPOINT_SYSCTLS))))
    end = {**ends[first], "DriverOpts": {**options, ENDPOINT_SYSCTLS: wishes}}
    rest = {key: value for key, value in host["Sysctls"].items() if key not in sysctls}
    return _with(create, {**host, "Sysctls": rest}, {**ends, first: end})


def _sysctls_of_eth0(create: Body, first: str) -> Body:
    """Docker 26 knows them by the name of the interface; the first network's is eth0."""
    host, ends = host_config(create), _ends(create)
    options = dict((ends.get(first) or {}).get("DriverOpts") or {})
    wishes = options.pop(ENDPOINT_SYSCTLS, "")
    if not wishes:
        return create
    pairs = (pair.partition("=") for pair in wishes.split(","))
    sysctls = {key.replace(".IFNAME.", ".eth0."): value for key, _, value in pairs}
    end = {**ends[first], "DriverOpts": options}
    return _with(create, {**host, "Sysctls": {**(host.get("Sysctls") or {}), **sysctls}}, {**ends, first: end})


def _with(create: Body, host: Body, ends: Mapping[str, Body]) -> Body:
    return {
        **create,
        "HostConfig": host,
        "NetworkingConfig": {**create["NetworkingConfig"], "EndpointsConfig": dict(ends)},
    }
