"""A container as the target needs it: from what Docker says of it to the parts of an Offer, by pure functions.

Everything a user set is passed on, known or not. What `inspect` shows is already merged with the image, and given
explicitly it makes the same container. Left out is what the target's engine or the story decides: ids, the runtime,
the restart policy. Only `describe` asks Docker; what stands against a move is said in obstacles.py.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agent.doors import docker_model
from agent.doors.docker import Docker
from agent.doors.docker_model import Attachment, Container, Image, Mount
from agent.migration.fields import unknown_fields
from agent.migration.pins import Pinned
from protocol import peer

PREDEFINED = ("bridge", "host", "none")
"""Networks that every engine has; they take no wishes for addresses."""
MOVING_DRIVERS = ("macvlan", "ipvlan")
"""Where an address is one of the outer network, so that its peers find it on the target too."""

NONE: Pinned = MappingProxyType({})

Body = dict[str, Any]
Networks = Mapping[str, docker_model.Network]
Volumes = Mapping[str, docker_model.Volume]


@dataclass(frozen=True, slots=True)
class Spec:
    """What goes into an Offer."""

    create: Body
    """Body of POST /containers/create, without runtime, and with the restart policy `no`."""
    networks: tuple[peer.Network, ...]
    volumes: tuple[peer.Volume, ...]
    address_moves_along: bool
    """Every address is reachable on the target as it was: established connections can go on."""
    pinned: dict[str, tuple[str, ...]]
    """By network, the wishes that the user has not made: the current addresses, of Docker's choice so far."""
    notes: tuple[str, ...]
    """What will not be exactly as before, each a sentence."""


async def describe(docker: Docker, container: Container, image: Image | None, pinned: Pinned) -> Spec:
    """Ask for its networks and volumes, and put it all together."""
    networks = [await docker.network(found.network_id or found.network) for found in container.networks]
    names = {mount.name for mount in container.mounts if mount.kind == "volume"}
    volumes = [await docker.volume(name) for name in sorted(names)]
    return spec_of(
        container,
        image,
        {network.name: network for network in networks if network is not None},
        {volume.name: volume for volume in volumes if volume is not None},
        pinned,
    )


def spec_of(
    container: Container,
    image: Image | None,
    networks: Networks,
    volumes: Volumes,
    before: Pinned = NONE,
) -> Spec:
    """Everything about a container; `networks` by name, those it is attached to, and `volumes` by name.

    `before` has the wishes that a move has made for it, and not its user.
    """
    ends = {
        found.network: _endpoint(container, found, networks.get(found.network), before.get(found.network, ()))
        for found in container.networks
    }
    return Spec(
        create=create_body(container, image, {name: end for name, (end, _) in ends.items()}),
        networks=tuple(_network(found, networks.get(found.network), ends) for found in container.networks),
        volumes=volumes_of(container, volumes),
        address_moves_along=all(_moves(found, networks) for found in container.networks),
        pinned={name: pinned for name, (_, pinned) in ends.items() if pinned},
        notes=tuple(_notes(container)),
    )


def create_body(container: Container, image: Image | None, ends: Mapping[str, Body]) -> Body:
    """The body that makes this container again, by names and not by ids."""
    config: Body = {key: value for key, value in container.raw["Config"].items() if key != "MacAddress"}
    if not config.get("Entrypoint") and image is not None and image.config.get("Entrypoint"):
        # The user cleared it. Docker shows that as null, but null in a body would bring the image's back.
        config["Entrypoint"] = [""]
    ends = {name: end for name, end in ends.items() if name not in ("host", "none")}
    return {**config, "HostConfig": _host_config(container), "NetworkingConfig": {"EndpointsConfig": ends}}


def _host_config(container: Container) -> Body:
    host: Body = {key: value for key, value in container.raw["HostConfig"].items() if key != "Runtime"}
    host["RestartPolicy"] = {"Name": "no"}
    host["NetworkMode"] = _network_mode(container)
    host["VolumesFrom"] = host["Links"] = None
    if borrowed := _borrowed(container):
        host["Mounts"] = [*(host.get("Mounts") or ()), *borrowed]
    return host


def _network_mode(container: Container) -> str:
    """The first network, by name: on the target its id is another one."""
    mode = str(container.raw["HostConfig"].get("NetworkMode") or "default")
    if mode == "default":
        mode = "bridge"
    for found in container.networks:
        if mode in (found.network, found.network_id) or (len(mode) >= 12 and found.network_id.startswith(mode)):
            return found.network
    if ":" in mode or mode in ("host", "none"):
        return mode
    # It has been disconnected from its first network; to name that would connect it again.
    return container.networks[0].network if container.networks else "none"


# Networks


def _endpoint(
    container: Container, found: Attachment, network: docker_model.Network | None, before: Sequence[str]
) -> tuple[Body, tuple[str, ...]]:
    """The wishes for one network, and which of them the user did not make."""
    raw = container.raw["NetworkSettings"]["Networks"][found.network] or {}
    end: Body = {key: raw[key] for key in ("Links", "DriverOpts", "GwPriority", "IPAMConfig") if raw.get(key)}
    # Up to API 1.44 Docker adds the short id by itself.
    if aliases := [alias for alias in raw.get("Aliases") or () if alias != container.id[:12]]:
        end["Aliases"] = aliases
    if ipam := {key: value for key, value in (end.pop("IPAMConfig", None) or {}).items() if key not in before}:
        end["IPAMConfig"] = ipam
    mac = container.raw["Config"].get("MacAddress") if "MacAddress" not in before else ""
    if found.network == _network_mode(container) and mac:
        end["MacAddress"] = mac  # of the user's choice: one of Docker's choice is not shown there
    if not _takes_addresses(found, network):
        return end, ()
    asked = end.get("IPAMConfig") or {}
    wishes = {"IPv4Address": _bare(found.ipv4), "IPv6Address": _bare(found.ipv6)}
    pinned = {key: address for key, address in wishes.items() if address and not asked.get(key)}
    end["IPAMConfig"] = {**asked, **pinned}
    keys = tuple(pinned)
    if network is not None and network.driver != "ipvlan" and "MacAddress" not in end:
        # in an ipvlan all have the MAC address of the parent
        end["MacAddress"], keys = found.mac, (*keys, "MacAddress")
    return end, keys


def _takes_addresses(found: Attachment, network: docker_model.Network | None) -> bool:
    if network is None or found.network in PREDEFINED or not found.addresses:
        return False
    ipam = (network.raw.get("IPAM") or {}).get("Driver") or "default"
    return network.driver in ("bridge", *MOVING_DRIVERS) and ipam == "default"


def _bare(address: str) -> str:
    return address.partition("/")[0]


def _moves(found: Attachment, networks: Networks) -> bool:
    network = networks.get(found.network)
    if not found.addresses:
        return found.network != "host"
    return network is not None and network.driver in MOVING_DRIVERS and _takes_addresses(found, network)


def _network(
    found: Attachment, network: docker_model.Network | None, ends: Mapping[str, tuple[Body, tuple[str, ...]]]
) -> peer.Network:
    wishes = ends[found.network][0]
    asked = set((wishes.get("IPAMConfig") or {}).values()) if _takes_addresses(found, network) else set()
    return peer.Network(
        name=found.network,
        driver=network.driver if network is not None else "",
        create=network_create_body(network) if network is not None else {},
        addresses=tuple(address for address in found.addresses if _bare(address) in asked),
        mac=wishes.get("MacAddress", ""),
    )


def network_create_body(network: docker_model.Network) -> Body:
    """The body of POST /networks/create for the like of it; empty if it can't be made, or is always there."""
    raw = network.raw
    if network.name in PREDEFINED or network.scope != "local" or raw.get("Ingress") or raw.get("ConfigOnly"):
        return {}
    body: Body = {"Name": network.name, "Driver": network.driver, "Labels": raw.get("Labels") or {}}
    body |= {key: raw[key] for key in ("Internal", "Attachable", "EnableIPv4", "EnableIPv6") if key in raw}
    if (raw.get("ConfigFrom") or {}).get("Network"):
        return {**body, "ConfigFrom": raw["ConfigFrom"]}  # which brings the subnets and options
    ipam = raw.get("IPAM") or {}
    subnets = [
        _subnet(entry) for entry in ipam.get("Config") or () if raw.get("EnableIPv6") or ":" not in entry["Subnet"]
    ]
    body["IPAM"] = {"Driver": ipam.get("Driver") or "default", "Options": ipam.get("Options") or {}, "Config": subnets}
    body["Options"] = raw.get("Options") or {}
    return body


def _subnet(entry: Mapping[str, Any]) -> Body:
    # Docker 26 shows the gateway of an IPv6 subnet of its own choice with the prefix length, and takes it without.
    known = {key: value for key, value in entry.items() if value}
    return {**known, "Gateway": _bare(known["Gateway"])} if "Gateway" in known else known


# Volumes and mounts


def volumes_of(container: Container, volumes: Volumes) -> tuple[peer.Volume, ...]:
    """The mounts whose content lies outside the container's own file system."""
    anonymous = _anonymous(container)
    return tuple(
        _volume(mount, volumes.get(mount.name), mount.destination in anonymous)
        for mount in container.mounts
        if mount.kind in ("volume", "bind")
    )


def _volume(mount: Mount, volume: docker_model.Volume | None, anonymous: bool) -> peer.Volume:
    return peer.Volume(
        kind="volume" if mount.kind == "volume" else "bind",
        name=mount.name if mount.kind == "volume" else mount.source,
        destination=mount.destination,
        driver=mount.driver or "local",
        options=dict(volume.options) if volume is not None else {},
        labels=dict(volume.labels) if volume is not None else {},
        shared=volume is not None and volume.scope == "global",
        anonymous=anonymous,
        read_only=not mount.writable,
    )


def _places(container: Container) -> tuple[set[str], set[str], set[str]]:
    """Where something is mounted: of the user's choice; where a volume is wanted, which is Docker's; of the image's."""
    host = container.raw["HostConfig"]
    mounts, binds = host.get("Mounts") or (), host.get("Binds") or ()
    unsaid = [entry["Target"] for entry in mounts if entry.get("Type") == "volume" and not entry.get("Source")]
    unsaid += [bind for bind in binds if ":" not in bind]
    said = [entry["Target"] for entry in mounts] + [bind.split(":")[1] for bind in binds if ":" in bind]
    declared = container.raw["Config"].get("Volumes") or {}
    wanted = set(map(posixpath.normpath, unsaid))
    return set(map(posixpath.normpath, said)) - wanted, wanted, set(map(posixpath.normpath, declared))


def _anonymous(container: Container) -> set[str]:
    """Where Docker has made a volume by itself, which goes with the container if that is told to."""
    said, unsaid, declared = _places(container)
    return (unsaid | declared) - said - {entry["Target"] for entry in _borrowed(container)}


def _borrowed(container: Container) -> list[Body]:
    """Mounts taken over from other containers (--volumes-from), as entries of HostConfig.Mounts."""
    if not container.raw["HostConfig"].get("VolumesFrom"):
        return []
    said, unsaid, _ = _places(container)
    return [
        _explicit(mount) for mount in container.mounts if posixpath.normpath(mount.destination) not in said | unsaid
    ]


def _explicit(mount: Mount) -> Body:
    entry: Body = {"Type": mount.kind, "Target": mount.destination, "ReadOnly": not mount.writable}
    if mount.kind == "volume":
        return {**entry, "Source": mount.name, "VolumeOptions": {"NoCopy": True}}
    return {**entry, "Source": mount.source}


# Notes


def _notes(container: Container) -> Iterator[str]:
    for path in unknown_fields(container.raw):
        yield f"docker inspect shows {path}, which this version does not know"
    host = container.raw["HostConfig"]
    chosen = [
        port for port, ends in (host.get("PortBindings") or {}).items() if any(_unsaid(end) for end in ends or ())
    ]
    if host.get("PublishAllPorts"):
        chosen += container.raw["Config"].get("ExposedPorts") or {}
    for port in sorted(set(chosen)):
        yield f"port {port} is published on a port of Docker's choice, which will be another"
    if host.get("VolumesFrom"):
        yield "its --volumes-from is written out as mounts of its own"
    if _anonymous(container):
        yield "its anonymous volumes keep their content, not their names"
    mode = str(host.get("NetworkMode") or "default")
    if container.networks and mode not in ("default", _network_mode(container)) and len(mode) < 12:
        yield f"it is no longer on its first network {mode}, and will not have it as its network mode"
    if any(found.network == "bridge" for found in container.networks):
        yield "on Docker's default bridge it may have another address"


def _unsaid(end: Mapping[str, Any]) -> bool:
    return str(end.get("HostPort") or "0") == "0"
