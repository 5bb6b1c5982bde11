"""Whether this host can take a container: every reason against it, before anything is touched; and what it lacks."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from agent.base.errors import DockerFailed, Refused, StepFailed
from agent.checkpoint import proc
from agent.doors import docker_model
from agent.doors.docker import Docker
from agent.doors.docker_model import Image, Summary
from agent.migration import belongings, confinement, cordon, endpoints, fitting, ports
from agent.migration.host import OF_RESTORES, Host
from agent.prework import init
from agent.prework.layers import missing_layers, stored_blobs
from protocol.base import utc_now
from protocol.errors import ErrorCode, Reason, Why
from protocol.peer import Answer, Network, Offer, Volume
from protocol.reasons import against
from protocol.status import Engine

LEAST_CRIU = (4, 2)
CONTENT = "io.containerd.content.v1.content"
UNPRIVILEGED = Path("/proc/sys/vm/unprivileged_userfaultfd")
THROTTLES = ("BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps")


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a migration under way has been promised and does not hold yet."""

    container: str
    memory_bytes: int
    disk_bytes: int
    published: frozenset[ports.Port] = frozenset()
    addresses: frozenset[tuple[str, str]] = frozenset()
    """Network, address."""


def needs(offer: Offer, room: int, image_bytes: int) -> Reserved:
    return Reserved(
        offer.container,
        offer.memory_bytes + room,
        offer.files_bytes + image_bytes,
        frozenset((*ports.published(offer.create), *ports.listening(offer.listening))),
        fitting.addresses(offer.create),
    )


class Here:
    """What dockerd says of this host, asked once, whether for one offer or for a hundred."""

    def __init__(self, docker: Docker, engine: Engine, containers: Sequence[Summary], images: Sequence[Image]) -> None:
        self.docker = docker
        self.engine = engine
        self.containers = containers
        self.names = frozenset(found.name for found in containers)
        self.images = images
        self._networks: dict[str, docker_model.Network | None] = {}

    @classmethod
    async def look(cls, host: Host) -> Self:
        containers = await host.docker.list(all=True)
        return cls(host.docker, await host.engine(), containers, await host.docker.images())

    async def network(self, name: str) -> docker_model.Network | None:
        if name not in self._networks:
            self._networks[name] = await self.docker.network(name)
        return self._networks[name]


@dataclass(frozen=True, slots=True)
class Judged:
    """An offer, as this host sees it."""

    reasons: tuple[Reason, ...]
    need: Reserved
    image: Image | None
    missing: frozenset[str]
    """Layers."""
    binds: tuple[str, ...]
    precopy: tuple[Reason, ...]
    """Against that strategy alone: in its rounds all memory may be here once more."""


async def examine(
    host: Host, offer: Offer, reserved: Iterable[Reserved], room: int, arrived: Sequence[Reason] = ()
) -> tuple[Answer, Reserved]:
    """Answer an offer; `arrived` is what `at_arrival` has found.

    Raises:
        Refused: with every reason there is, the first one as its code.

    """
    here = await Here.look(host)
    judged = await judge(host, offer, list(reserved), room, here, arrived)
    if judged.reasons:
        raise refusal(host.name, offer.container, judged.reasons)
    blobs: set[str] = set()
    if judged.image is None and here.engine.image_store == "containerd":
        ids = [image.id for image in here.images]
        blobs = await asyncio.to_thread(_held_blobs, await host.docker.data_root(), ids)
    answer = Answer(
        missing_layers=tuple(sorted(judged.missing)),
        image_wanted=judged.image is None,
        engine=here.engine,
        held_blobs=tuple(sorted(blobs)),
        init_wanted=bool(offer.init) and not init.kept(offer.init).exists(),
        binds=judged.binds,
    )
    return answer, judged.need


async def judge(
    host: Host, offer: Offer, others: list[Reserved], room: int, here: Here, arrived: Sequence[Reason] = ()
) -> Judged:
    """Every reason against it, and what it would need."""
    engine = here.engine
    reasons = [
        *(cordon.against(host.settings.state_dir, host.name) if offer.source != host.name else ()),
        *_engines(host, engine, offer),
        *(against_postcopy(engine) if offer.lazy else ()),
        *_hardware(offer),
        *await _processor(host, offer),
        *arrived,
        *_names(offer, others, here),
    ]
    reasons += confinement.against(offer.create, offer.engine, engine, confinement.loaded())
    promised = [port for other in others for port in other.published]
    held = ports.listening(offer.listening)
    reasons += ports.reasons(offer.create, host.settings.port_policy, promised, held)
    reasons += await _networks(host, offer, others, here)
    volumes, binds = await _volumes(host, offer)
    reasons += volumes
    found = next((image for image in here.images if belongings.same_image(image, offer.image)), None)
    layers = [image.diff_ids for image in here.images]
    missing = missing_layers(offer.image.diff_ids, layers) if found is None else set()
    need = needs(offer, room, 0 if found else offer.image.size)
    reasons += await _room(host, need, others)
    twice = replace(need, memory_bytes=need.memory_bytes + offer.memory_bytes)
    return Judged(tuple(reasons), need, found, frozenset(missing), binds, tuple(_memory(host, twice, others)))


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
    return _version(version) >= LEAST_CRIU


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return ()


def _engines(host: Host, here: Engine, offer: Offer) -> Iterable[Reason]:
    there = offer.engine
    if not criu_is_usable(here.criu):
        message = f"CRIU {here.criu} is too old" if here.criu else "CRIU is not installed"
        yield against(Why.CRIU_VERSION, message, "install CRIU 4.2 or newer on the target")
    elif _version(here.criu) < _version(there.criu):
        message = f"its CRIU {here.criu} is older than the source's {there.criu}"
        yield against(Why.CRIU_VERSION, message, "install the same CRIU on both hosts", ErrorCode.INCOMPATIBLE)
    if not here.runtime_registered:
        yield against(Why.NOT_SET_UP, "dockerd does not know the runtime transship", "run `transship setup` there")
    if os.uname().machine != offer.machine:
        yield against(Why.ARCHITECTURE, f"it is {os.uname().machine}, the source {offer.machine}")
    if here.cgroup_version != there.cgroup_version:
        yield against(Why.CGROUP_VERSION, f"it has cgroup v{here.cgroup_version}, the source v{there.cgroup_version}")
    for feature in OF_RESTORES:
        if feature in there.criu_features and feature not in here.criu_features:
            message = f"its kernel or CRIU does not have {feature}, which the source has"
            yield against(Why.KERNEL_FEATURE, message, f"`criu check --feature {feature}` there says more")
    if here.userns_remap != there.userns_remap:
        yield against(Why.USERNS_REMAP, "one of the hosts uses userns-remap and the other does not")


def against_precopy(source: Engine) -> Iterator[Reason]:
    """What it needs of the source's kernel: to mark the pages that are written."""
    if "mem_dirty_track" not in source.criu_features:
        message = "pre-copy needs mem_dirty_track (soft-dirty pages), which its kernel or CRIU does not have"
        hint = "`--strategy cold` moves it all the same; a kernel with CONFIG_MEM_SOFT_DIRTY, as most have, can do it"
        yield against(Why.NO_PRECOPY, message, hint)


def against_postcopy(here: Engine) -> Iterator[Reason]:
    """What it needs of the kernel: userfaultfd, and that for whoever is no root of this host, too."""
    hint = "`--strategy cold` moves it all the same"
    if "uffd-noncoop" not in here.criu_features:
        message = "post-copy needs uffd-noncoop, which its kernel or CRIU does not have"
        yield against(Why.NO_POSTCOPY, message, hint)
    elif here.userns_remap and UNPRIVILEGED.read_text().strip() == "0":
        message = "post-copy with userns-remap needs vm.unprivileged_userfaultfd=1"
        yield against(Why.NO_POSTCOPY, message, f"set it there; {hint}")


def _names(offer: Offer, others: list[Reserved], here: Here) -> Iterator[Reason]:
    if offer.container in here.names or any(other.container == offer.container for other in others):
        message = f"there is a container named {offer.container}"
        yield against(Why.NAME_TAKEN, message, "remove or rename it on the target")


async def _processor(host: Host, offer: Offer) -> tuple[Reason, ...]:
    lacks = await host.against_cpu(offer.cpu)
    message = f"its processor can't do what the source's can: {lacks}"
    return (against(Why.CPU, message, "use a host with the same kind of processor, or a newer one"),) if lacks else ()


def at_arrival(offer: Offer, limit: float) -> Iterator[Reason]:
    """What can be said of it only when it has just come: whether the two clocks agree, by so many seconds."""
    if offer.sent_at is None:
        return
    ahead = (utc_now() - offer.sent_at).total_seconds()
    if abs(ahead) > limit:
        message = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the source's"
        yield against(Why.CLOCK_SKEW, message, "synchronize both (chrony, systemd-timesyncd)")


def _hardware(offer: Offer) -> Iterable[Reason]:
    """What its configuration names of the host itself."""
    wanted = fitting.host_config(offer.create)
    named = [entry.get("PathOnHost") for entry in wanted.get("Devices") or ()]
    named += [entry.get("Path") for key in THROTTLES for entry in wanted.get(key) or ()]
    for device in dict.fromkeys(filter(None, named)):
        if not os.path.exists(device):  # noqa: PTH110 - one stat
            yield against(Why.DEVICE_MISSING, f"there is no {device}, which is given to the container")
    cores = len(os.sched_getaffinity(0))
    if (wanted.get("NanoCpus") or 0) > cores * 10**9:
        yield against(Why.CORES, f"it has {cores} cores, fewer than --cpus asks for")
    if (wished := cores_of(wanted.get("CpusetCpus") or "")) - os.sched_getaffinity(0):
        message = f"it has not all of the cores {wanted['CpusetCpus']} that --cpuset-cpus asks for ({len(wished)})"
        yield against(Why.CORES, message)


MOST_CORES = 1 << 16
"""Twice what any kernel knows."""


def cores_of(text: str) -> set[int]:
    """The numbers in a list like 0-2,4.

    Raises:
        Refused: it is no such list.

    """
    try:
        pairs = [part.partition("-") for part in text.split(",") if part.strip()]
        ranges = [range(int(first), min(int(last or first), MOST_CORES) + 1) for first, _, last in pairs]
        if len(ranges) <= MOST_CORES and all(cores.start >= 0 for cores in ranges):
            return {core for cores in ranges for core in cores}
    except ValueError:
        pass
    raise Refused(ErrorCode.BAD_COMMAND, f"this is no list of cores: {text[:60]!r}")


async def _networks(host: Host, offer: Offer, others: list[Reserved], known: Here) -> list[Reason]:
    reasons, here = [], {}
    for wanted in offer.networks:
        network = await known.network(wanted.name)
        if network is None:
            reasons += await _missing_network(host, offer, wanted)
        elif network.driver != wanted.driver:
            message = f"its network {wanted.name} is a {network.driver}, the source's a {wanted.driver}"
            reasons.append(against(Why.NETWORK_DIFFERS, message))
        else:
            here[wanted.name] = endpoints.without_stale(network, offer.container, known.containers)
    promised = {address for other in others for address in other.addresses}
    return reasons + list(fitting.fit_networks(offer, here, promised).reasons)


async def _missing_network(host: Host, offer: Offer, wanted: Network) -> list[Reason]:
    if not wanted.create or host.settings.network_policy != "create":
        hint = "create it there" + (', or set network_policy = "create"' if wanted.create else "")
        return [against(Why.NETWORK_MISSING, f"there is no network {wanted.name}", hint)]
    _, _, rival = fitting.network_here(offer, wanted, await host.docker.networks())
    return [against(Why.NETWORK_DIFFERS, rival)] if rival else []


async def _volumes(host: Host, offer: Offer) -> tuple[list[Reason], tuple[str, ...]]:
    """What stands against it; and the bind mounts whose content is wanted."""
    reasons: list[Reason] = []
    binds: list[str] = []
    for volume in offer.volumes:
        message, hint = "", ""
        if volume.kind == "bind":
            wanted, message, hint = belongings.bind_here(host.settings.bind_copy, volume)
            binds += [volume.name] if wanted and volume.name not in binds else []
        elif not volume.anonymous:
            message, hint = await _volume(host, volume)
        if message:
            reasons.append(against(Why.VOLUME_CONFLICT, message, hint))
    return reasons, tuple(binds)


async def _volume(host: Host, volume: Volume) -> tuple[str, str]:
    """What stands against a named volume, and what to do."""
    try:
        found = await host.docker.volume(volume.name)
    except DockerFailed as error:  # it asks all of its drivers, and one is out of order
        if not error.http_status:
            raise
        return (
            f"whether it has the volume {volume.name} can't be told: {error.message}",
            "mend that volume driver there",
        )
    if found is None:
        if volume.driver == "local" or volume.driver in await host.docker.volume_drivers():
            return "", ""
        return f"there is no volume driver {volume.driver} for {volume.name}", "install that plugin on the target"
    if belongings.copied(volume):
        hint = "remove it on the target if its content is not needed"
        return f"there is a volume {volume.name}, and it would be overwritten", hint
    if volume.shared:  # with what options it was made, only the host knows that has made it
        same = (found.driver, found.scope) == (volume.driver, "global")
    else:
        same = (found.driver, dict(found.options)) == (volume.driver, volume.options)
    return "" if same else f"the volume {volume.name} there is another storage than the source's", ""


LOOK_BYTES = 64 << 20
"""Between two looks at how much is left on the disk."""


async def while_room(host: Host, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What a peer sends, as long as this host keeps what it has set aside for itself: more may come than was said.

    Raises:
        StepFailed: the disk is about to be full.

    """
    since = 0
    async for chunk in chunks:
        since += len(chunk)
        if since >= LOOK_BYTES:
            since = 0
            disk = os.statvfs(await host.docker.data_root())
            if disk.f_bavail * disk.f_frsize < host.settings.limits.disk_reserve_bytes:
                raise StepFailed(f"the disk of {host.name} is about to be full", hint="free some space there")
        yield chunk


def _memory(host: Host, need: Reserved, others: list[Reserved]) -> Iterator[Reason]:
    reserve = host.settings.limits.memory_reserve_bytes
    free = proc.memory_available() - reserve - sum(other.memory_bytes for other in others)
    if need.memory_bytes > free:
        message = f"{need.memory_bytes >> 20} MiB of memory are needed, {max(free, 0) >> 20} MiB are free"
        yield against(Why.NO_MEMORY, message, "images and container are in memory together for a moment")


async def _room(host: Host, need: Reserved, others: list[Reserved]) -> list[Reason]:
    limits = host.settings.limits
    reasons = list(_memory(host, need, others))
    disk = os.statvfs(await host.docker.data_root())
    free = disk.f_bavail * disk.f_frsize - limits.disk_reserve_bytes - sum(other.disk_bytes for other in others)
    if need.disk_bytes > free:
        message = f"{need.disk_bytes >> 20} MiB of disk are needed, {max(free, 0) >> 20} MiB are free"
        reasons.append(against(Why.NO_SPACE, message))
    if len(others) >= limits.migrations:
        message = f"{len(others)} migrations are under way there, the limit"
        reasons.append(against(Why.LIMIT, message, "try again later, or raise limits.migrations"))
    return reasons
