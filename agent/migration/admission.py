"""Whether this host can take a container: every reason against it, before anything is touched; and what it lacks."""

import asyncio
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.base.errors import Refused
from agent.checkpoint import proc
from agent.migration import belongings
from agent.migration.host import Host
from agent.prework.layers import missing_layers, stored_blobs
from protocol.errors import ErrorCode, Reason
from protocol.peer import Answer, Offer
from protocol.status import Engine

LEAST_CRIU = (4, 2)
CONTENT = "io.containerd.content.v1.content"


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a migration under way has been promised and does not hold yet."""

    container: str
    memory_bytes: int
    disk_bytes: int


def needs(offer: Offer, room: int, image_bytes: int) -> Reserved:
    return Reserved(offer.container, offer.memory_bytes + room, offer.files_bytes + image_bytes)


async def examine(host: Host, offer: Offer, reserved: Iterable[Reserved], room: int) -> tuple[Answer, Reserved]:
    """Answer an offer.

    Raises:
        Refused: with every reason there is, the first one as its code.

    """
    engine = await host.engine()
    others = list(reserved)
    reasons = [*_engines(host, engine, offer), *await _names(host, offer, others)]
    reasons += await _networks(host, offer)
    reasons += await _volumes(host, offer)
    found = await belongings.find_image(host.docker, offer.image)
    images = await host.docker.images()
    missing = missing_layers(offer.image.diff_ids, [image.diff_ids for image in images]) if found is None else set()
    need = needs(offer, room, 0 if found else offer.image.size)
    reasons += await _room(host, need, others)
    if reasons:
        raise refusal(host.name, offer.container, reasons)
    held: set[str] = set()
    if found is None and engine.image_store == "containerd":
        held = await asyncio.to_thread(_held_blobs, await host.docker.data_root(), [image.id for image in images])
    answer = Answer(
        missing_layers=tuple(sorted(missing)), image_wanted=found is None, engine=engine, held_blobs=tuple(sorted(held))
    )
    return answer, need


def _held_blobs(data_root: str, image_ids: list[str]) -> set[str]:
    """Layer blobs in the content store of the containerd that dockerd uses: the system's, or one of its own."""
    for root in (Path("/var/lib/containerd"), Path(data_root) / "containerd" / "daemon"):
        content = root / CONTENT
        if content.is_dir():
            return stored_blobs(content, image_ids)
    return set()


def refusal(host: str, container: str, reasons: Sequence[Reason], verb: str = "can't take") -> Refused:
    """All reasons as one error, the first one as its code."""
    first = reasons[0]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return Refused(first.code, f"{host} {verb} {container}: {first.message}{more}", hint=first.hint, reasons=reasons)


def criu_is_usable(version: str) -> bool:
    """From 4.2 on: before, TCP sockets can't be dumped on kernels from 6.16 (facts.md)."""
    try:
        return tuple(int(part) for part in version.split(".")[:2]) >= LEAST_CRIU
    except ValueError:
        return False


def _engines(host: Host, here: Engine, offer: Offer) -> Iterable[Reason]:
    there = offer.engine
    if not criu_is_usable(here.criu):
        yield Reason(
            code=ErrorCode.CRIU_UNUSABLE,
            message=f"CRIU {here.criu} is too old" if here.criu else "CRIU is not installed",
            hint="install CRIU 4.2 or newer on the target",
        )
    elif here.criu.split(".")[:2] < there.criu.split(".")[:2]:
        yield Reason(
            code=ErrorCode.INCOMPATIBLE,
            message=f"its CRIU {here.criu} is older than the source's {there.criu}",
            hint="install the same CRIU on both hosts",
        )
    if not here.runtime_registered:
        yield Reason(
            code=ErrorCode.INCOMPATIBLE,
            message="dockerd does not know the runtime transship",
            hint="run `transship setup` there",
        )
    if os.uname().machine != offer.machine:
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=f"it is {os.uname().machine}, the source {offer.machine}")
    if here.cgroup_version != there.cgroup_version:
        yield Reason(
            code=ErrorCode.INCOMPATIBLE,
            message=f"it has cgroup v{here.cgroup_version}, the source v{there.cgroup_version}",
        )
    if here.userns_remap != there.userns_remap:
        yield Reason(code=ErrorCode.INCOMPATIBLE, message="one of the hosts uses userns-remap and the other does not")


async def _names(host: Host, offer: Offer, others: list[Reserved]) -> list[Reason]:
    reasons = []
    existing = await host.docker.list(all=True)
    if any(found.name == offer.container for found in existing) or any(
        other.container == offer.container for other in others
    ):
        reasons.append(
            Reason(
                code=ErrorCode.NAME_TAKEN,
                message=f"there is a container named {offer.container}",
                hint="remove or rename it on the target",
            )
        )
    taken = {port for found in existing for port in found.ports}
    for port in sorted(_published(offer.create)):
        if port in taken:
            reasons.append(Reason(code=ErrorCode.PORT_TAKEN, message=f"port {port[0]}/{port[1]} is published already"))
    return reasons


def _published(create: dict[str, Any]) -> set[tuple[int, str]]:
    """Host ports that the container publishes by number: (port, protocol)."""
    bindings = create.get("HostConfig", {}).get("PortBindings") or {}
    return {
        (int(binding["HostPort"]), port.partition("/")[2] or "tcp")
        for port, places in bindings.items()
        for binding in places or []
        if binding.get("HostPort", "").isdigit() and binding["HostPort"] != "0"
    }


async def _networks(host: Host, offer: Offer) -> list[Reason]:
    reasons = []
    for wanted in offer.networks:
        network = await host.docker.network(wanted.name)
        if network is None:
            if not wanted.create or host.settings.network_policy != "create":
                reasons.append(
                    Reason(
                        code=ErrorCode.NETWORK_MISSING,
                        message=f"there is no network {wanted.name}",
                        hint="create it there, or set network_policy = create",
                    )
                )
            continue
        if network.driver != wanted.driver:
            reasons.append(
                Reason(
                    code=ErrorCode.INCOMPATIBLE,
                    message=f"its network {wanted.name} is a {network.driver}, the source's a {wanted.driver}",
                )
            )
        taken = {ipaddress.ip_interface(address).ip for address in network.addresses}
        reasons += [
            Reason(code=ErrorCode.ADDRESS_TAKEN, message=f"{address} is taken on {wanted.name}")
            for address in wanted.addresses
            if ipaddress.ip_interface(address).ip in taken and offer.tcp == "keep"
        ]
    return reasons


async def _volumes(host: Host, offer: Offer) -> list[Reason]:
    reasons = []
    for volume in offer.volumes:
        if belongings.copied(volume):
            if await host.docker.volume(volume.name) is not None:
                reasons.append(
                    Reason(
                        code=ErrorCode.VOLUME_CONFLICT,
                        message=f"there is a volume {volume.name}, and it would be overwritten",
                        hint="remove it on the target if its content is not needed",
                    )
                )
        elif volume.kind == "bind" and not os.path.exists(volume.name):  # noqa: PTH110 - one lstat
            reasons.append(
                Reason(
                    code=ErrorCode.VOLUME_CONFLICT,
                    message=f"the bind mount's path {volume.name} is not there",
                    hint="make it there with the content that the container expects",
                )
            )
    return reasons


async def _room(host: Host, need: Reserved, others: list[Reserved]) -> list[Reason]:
    limits = host.settings.limits
    reasons = []
    free = proc.memory_available() - limits.memory_reserve_bytes - sum(other.memory_bytes for other in others)
    if need.memory_bytes > free:
        reasons.append(
            Reason(
                code=ErrorCode.NO_MEMORY,
                message=f"{need.memory_bytes >> 20} MiB of memory are needed, {max(free, 0) >> 20} MiB are free",
                hint="images and container are in memory together for a moment",
            )
        )
    disk = os.statvfs(await host.docker.data_root())
    free = disk.f_bavail * disk.f_frsize - limits.disk_reserve_bytes - sum(other.disk_bytes for other in others)
    if need.disk_bytes > free:
        reasons.append(
            Reason(
                code=ErrorCode.NO_SPACE,
                message=f"{need.disk_bytes >> 20} MiB of disk are needed, {max(free, 0) >> 20} MiB are free",
            )
        )
    if len(others) >= limits.migrations:
        reasons.append(
            Reason(
                code=ErrorCode.BUSY,
                message=f"{len(others)} migrations are under way there, the limit",
                hint="try again later, or raise limits.migrations",
            )
        )
    return reasons
