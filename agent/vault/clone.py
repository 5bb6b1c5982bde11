"""The same container under another name: with addresses, published ports and volumes of its own. Pure.

Its hostname stays: it is in the images, with all else that its processes know of themselves.
"""

import copy
from typing import Any

from protocol.commands import TcpPolicy
from protocol.peer import Offer


def as_clone(offer: Offer, name: str) -> tuple[Offer, tuple[str, ...]]:
    """The offer of the clone, and what is not as it was."""
    create = copy.deepcopy(offer.create)
    notes = [f"{name} is a clone of {offer.container}: its connections are closed"]
    networking: dict[str, Any] = create.get("NetworkingConfig") or {}
    ends: dict[str, Any] = networking.get("EndpointsConfig") or {}
    for end in ends.values():
        for wish in ("IPAMConfig", "MacAddress"):
            end.pop(wish, None)
    if any(network.addresses for network in offer.networks):
        notes.append("it gets addresses of its own")
    if any(end.get("Aliases") for end in ends.values()):
        notes.append("it has the same network aliases, so both answer to them")
    host: dict[str, Any] = create.get("HostConfig") or {}
    notes += _own_ports(host)
    renamed = {
        volume.name: f"{name}-{volume.name}"
        for volume in offer.volumes
        if volume.kind == "volume" and not volume.anonymous
    }
    _rename_volumes(host, renamed)
    notes += [f"its volume {old} is {new}" for old, new in sorted(renamed.items())]
    clone = offer.model_copy(
        update={
            "container": name,
            "create": create,
            "tcp": TcpPolicy.CLOSE,
            "pinned": {},
            "networks": tuple(network.model_copy(update={"addresses": (), "mac": ""}) for network in offer.networks),
            "volumes": tuple(
                volume.model_copy(update={"name": renamed.get(volume.name, volume.name)})
                if volume.kind == "volume"
                else volume
                for volume in offer.volumes
            ),
        }
    )
    return clone, tuple(notes)


def _own_ports(host: dict[str, Any]) -> list[str]:
    bindings: dict[str, Any] = host.get("PortBindings") or {}
    published = sorted(port for port, places in bindings.items() if places)
    for port in published:
        bindings[port] = [{**place, "HostPort": ""} for place in bindings[port]]
    return [f"{', '.join(published)} is published on a port of Docker's choice"] if published else []


def _rename_volumes(host: dict[str, Any], renamed: dict[str, str]) -> None:
    binds = []
    for bind in host.get("Binds") or ():
        name, colon, rest = bind.partition(":")
        binds.append(renamed.get(name, name) + colon + rest)
    if binds:
        host["Binds"] = binds
    for mount in host.get("Mounts") or ():
        if mount.get("Type") == "volume" and mount.get("Source") in renamed:
            mount["Source"] = renamed[mount["Source"]]


def volume_names(offer: Offer, clone: Offer) -> dict[str, str]:
    """A volume's name in the archive -> its name for the target; all the same where it is no clone."""
    return {
        before.name: after.name
        for before, after in zip(offer.volumes, clone.volumes, strict=True)
        if before.kind == "volume"
    }
