"""A container as the target needs it: from what Docker says of it to the parts of an Offer, by pure functions.

Everything a user set is passed on, known or not. What `inspect` shows is already merged with the image, and given
explicitly it makes the same container. Left out is what the target's engine or the story decides: ids, the runtime,
the restart policy. Only `describe` asks Docker; what stands against a move is said in obstacles.py.
"""

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.doors import docker_model
from agent.doors.docker import Docker
from agent.doors.docker_model import Attachment, Container, Image, Mount
from agent.migration.fields import unknown_fields
from protocol import peer

PREDEFINED = ("bridge", "host", "none")
"""Networks that every engine has; they take no wishes for addresses."""
MOVING_DRIVERS = ("macvlan", "ipvlan")
"""Where an address is one of the outer network, so that its peers find it on the target too."""
ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
_ETH0 = re.compile(r"net\.[^.]+\.[^.]+\.eth0\.")
ANONYMOUS = "com.docker.volume.anonymous"

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
    pinned: tuple[str, ...]
    """Networks on which the current address is asked for, though the user left the choice to Docker."""
    notes: tuple[str, ...]
    """What will not be exactly as before, each a sentence."""


async def describe(docker: Docker, container: Container, image: Image | None) -> Spec:
    """Ask for its networks and volumes, and put it all together."""
    networks = [await docker.network(found.network_id or found.network) for found in container.networks]
    names = {mount.name for mount in container.mounts if mount.kind == "volume"}
    volumes = [await docker.volume(name) for name in sorted(names)]
    return spec_of(
        container,
        image,
        {network.name: network for network in networks if network is not None},
        {volume.name: volume for volume in volumes if volume is not None},
    )


def spec_of(container: Container, image: Image | None, networks: Networks, volumes: Volumes) -> Spec:
    """Everything about a container; `networks` by name, those it is attached to, and `volumes` by name."""
    ends = {found.network: _endpoint(container, found, networks.get(found.network)) for found in container.networks}
    return Spec(
        create=create_body(container, image, networks),
        networks=tuple(_network(found, networks.get(found.network), ends) for found in container.networks),
        volumes=volumes_of(container, volumes),
        address_moves_along=all(_moves(found, networks) for found in container.networks),
        pinned=tuple(name for name, (_, pinned) in ends.items() if pinned),
        notes=tuple(_notes(container)),
    )


def create_body(container: Container, image: Image | None, networks: Networks) -> Body:
    """The body that makes this container again, by names and not by ids."""
    config: Body = {key: value for key, value in container.raw["Config"].items() if key != "MacAddress"}
    if not config.get("Entrypoint") and image is not None and image.config.get("Entrypoint"):
        # The user cleared it. Docker shows that as null, but null in a body would bring the image's back.
        config["Entrypoint"] = [""]
    ends = {found.network: _endpoint(container, found, networks.get(found.network))[0] for found in container.networks}
    ends = {name: end for name, end in ends.items() if name not in ("host", "none")}
    return {**config, "HostConfig": _host_config(container), "NetworkingConfig": {"EndpointsConfig": ends}}


def _host_config(container: Container) -> Body:
    host: Body = {key: value for key, value in container.raw["HostConfig"].items() if key != "Runtime"}
    host["RestartPolicy"] = {"Name": "no"}
    host["NetworkMode"] = _network_mode(container)
    host["VolumesFrom"] = host["Links"] = None
    named, binds = _mounts(container, host.get("Mounts") or ()), host.get("Binds") or ()
    host["Binds"] = [bind for bind in binds if ":" in bind] or None
    if named:
        host["Mounts"] = named
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


def _endpoint(container: Container, found: Attachment, network: docker_model.Network | None) -> tuple[Body, bool]:
    """The wishes for one network, and whether addresses are among them that the user did not ask for."""
    raw = container.raw["NetworkSettings"]["Networks"][found.network] or {}
    end: Body = {key: raw[key] for key in ("Links", "DriverOpts", "GwPriority", "IPAMConfig") if raw.get(key)}
    # Up to API 1.44 Docker adds the short id by itself.
    if aliases := [alias for alias in raw.get("Aliases") or () if alias != container.id[:12]]:
        end["Aliases"] = aliases
    if found.network == _network_mode(container) and (mac := container.raw["Config"].get("MacAddress")):
        end["MacAddress"] = mac  # of the user's choice: one of Docker's choice is not shown there
    if not _takes_addresses(found, network):
        return end, False
    asked = end.get("IPAMConfig") or {}
    wishes = {"IPv4Address": _bare(found.ipv4), "IPv6Address": _bare(found.ipv6)}
    pinned = {key: address for key, address in wishes.items() if address and not asked.get(key)}
    end["IPAMConfig"] = {**asked, **pinned}
    if network is not None and network.driver != "ipvlan":  # there all have the MAC address of the parent
        end.setdefault("MacAddress", found.mac)
    return end, bool(pinned)


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
        return True
    return network is not None and network.driver in MOVING_DRIVERS and _takes_addresses(found, network)


def _network(
    found: Attachment, network: docker_model.Network | None, ends: Mapping[str, tuple[Body, bool]]
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


def without_addresses(create: Body, names: Collection[str]) -> Body:
    """The body without wishes for addresses on these networks: where the target's network is another subnet."""
    config: Body = create["NetworkingConfig"]
    ends = {
        name: {key: value for key, value in end.items() if name not in names or key not in ("IPAMConfig", "MacAddress")}
        for name, end in config["EndpointsConfig"].items()
    }
    return {**create, "NetworkingConfig": {**config, "EndpointsConfig": ends}}


def fit_engine(create: Body, api: str) -> tuple[Body, tuple[str, ...]]:
    """The body as an engine of that API version takes it, and what it can't do."""
    host: Body = create["HostConfig"]
    ends: Body = create["NetworkingConfig"]["EndpointsConfig"]
    if tuple(map(int, api.split("."))) < (1, 48):
        asked = [name for name, end in ends.items() if end.get("GwPriority")]
        return create, tuple(f"the priority of its gateway on {name} is not known to that engine" for name in asked)
    # Docker 28 takes the settings of an interface with its network only.
    sysctls = {key: value for key, value in (host.get("Sysctls") or {}).items() if _ETH0.match(key)}
    first = host["NetworkMode"]
    if not sysctls or first not in ends:
        return create, ()
    moved = ",".join(f"{key.replace('.eth0.', '.IFNAME.')}={value}" for key, value in sysctls.items())
    options = ends[first].get("DriverOpts") or {}
    wishes = ",".join(filter(None, (moved, options.get(ENDPOINT_SYSCTLS))))
    end = {**ends[first], "DriverOpts": {**options, ENDPOINT_SYSCTLS: wishes}}
    rest = {key: value for key, value in host["Sysctls"].items() if key not in sysctls}
    networking = {**create["NetworkingConfig"], "EndpointsConfig": {**ends, first: end}}
    return {**create, "HostConfig": {**host, "Sysctls": rest}, "NetworkingConfig": networking}, ()


# Volumes and mounts


def volumes_of(container: Container, volumes: Volumes) -> tuple[peer.Volume, ...]:
    """The mounts whose content lies outside the container's own file system."""
    return tuple(
        _volume(mount, volumes.get(mount.name)) for mount in container.mounts if mount.kind in ("volume", "bind")
    )


def _volume(mount: Mount, volume: docker_model.Volume | None) -> peer.Volume:
    labels = volume.labels if volume is not None else {}
    return peer.Volume(
        kind="volume" if mount.kind == "volume" else "bind",
        name=mount.name if mount.kind == "volume" else mount.source,
        destination=mount.destination,
        driver=mount.driver or "local",
        options=dict(volume.options) if volume is not None else {},
        labels=dict(labels),
        anonymous=mount.kind == "volume" and (ANONYMOUS in labels or _generated(mount.name)),
        read_only=not mount.writable,
    )


def _generated(name: str) -> bool:
    """Docker's own naming; up to 27 it does not label the anonymous volumes of --mount."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def _mounts(container: Container, declared: Sequence[Body]) -> list[Body]:
    """HostConfig.Mounts, and in it by name all that Docker would else find no content for on the target.

    Those are anonymous volumes, and mounts borrowed from other containers.
    """
    by_place = {mount.destination: mount for mount in container.mounts}
    bound = {
        posixpath.normpath(bind.split(":")[1]) for bind in container.raw["HostConfig"].get("Binds") or () if ":" in bind
    }
    result: list[Body] = []
    for entry in declared:
        place = posixpath.normpath(entry["Target"])
        bound.add(place)
        if entry.get("Type") == "volume" and not entry.get("Source") and place in by_place:
            options = {**(entry.get("VolumeOptions") or {}), "NoCopy": True}
            entry = {**entry, "Source": by_place[place].name, "VolumeOptions": options}
        result.append(entry)
    return result + [_explicit(mount) for place, mount in by_place.items() if place not in bound]


def _explicit(mount: Mount) -> Body:
    entry: Body = {"Type": mount.kind, "Target": mount.destination, "ReadOnly": not mount.writable}
    if mount.kind == "volume":
        # What the image has there must not be copied in: the content comes from the source, be it empty.
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
    named = {entry.get("Source") for entry in _mounts(container, host.get("Mounts") or ())}
    if any(mount.kind == "volume" and mount.name in named and _generated(mount.name) for mount in container.mounts):
        yield "its anonymous volumes keep their names, and `docker rm --volumes` will leave them"
    mode = str(host.get("NetworkMode") or "default")
    if container.networks and mode not in ("default", _network_mode(container)) and len(mode) < 12:
        yield f"it is no longer on its first network {mode}, and will not have it as its network mode"
    if any(found.network == "bridge" for found in container.networks):
        yield "on Docker's default bridge it may have another address"


def _unsaid(end: Mapping[str, Any]) -> bool:
    return str(end.get("HostPort") or "0") == "0"
