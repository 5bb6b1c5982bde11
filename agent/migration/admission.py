"""Whether this host can take a container: every reason against it, before anything is touched; and what it lacks."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import DockerFailed, Refused, StepFailed
from agent.checkpoint import proc
from agent.migration import belongings, confinement, cordon, fitting, ports
from agent.migration.host import Host
from agent.prework import init
from agent.prework.layers import missing_layers, stored_blobs
from protocol.errors import ErrorCode, Reason
from protocol.peer import Answer, Network, Offer, Volume
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


async def examine(host: Host, offer: Offer, reserved: Iterable[Reserved], room: int) -> tuple[Answer, Reserved]:
    """Answer an offer.

    Raises:
        Refused: with every reason there is, the first one as its code.

    """
    engine = await host.engine()
    others = list(reserved)
    reasons = [
        *(cordon.against(host.settings.state_dir, host.name) if offer.source != host.name else ()),
        *_engines(host, engine, offer),
        *(against_postcopy(engine) if offer.lazy else ()),
        *_hardware(offer),
        *await _names(host, offer, others),
    ]
    reasons += confinement.against(offer.create, offer.engine, engine, confinement.loaded())
    promised = [port for other in others for port in other.published]
    held = ports.listening(offer.listening)
    reasons += ports.reasons(offer.create, host.settings.port_policy, promised, held)
    reasons += await _networks(host, offer, others)
    volumes, binds = await _volumes(host, offer)
    reasons += volumes
    found = await belongings.find_image(host.docker, offer.image)
    images = await host.docker.images()
    missing = missing_layers(offer.image.diff_ids, [image.diff_ids for image in images]) if found is None else set()
    need = needs(offer, room, 0 if found else offer.image.size)
    reasons += await _room(host, need, others)
    if reasons:
        raise refusal(host.name, offer.container, reasons)
    blobs: set[str] = set()
    if found is None and engine.image_store == "containerd":
        blobs = await asyncio.to_thread(_held_blobs, await host.docker.data_root(), [image.id for image in images])
    answer = Answer(
        missing_layers=tuple(sorted(missing)),
        image_wanted=found is None,
        engine=engine,
        held_blobs=tuple(sorted(blobs)),
        init_wanted=bool(offer.init) and not init.kept(offer.init).exists(),
        binds=binds,
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
    return _version(version) >= LEAST_CRIU


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        return ()


def _engines(host: Host, here: Engine, offer: Offer) -> Iterable[Reason]:
    there = offer.engine
    if not criu_is_usable(here.criu):
        yield Reason(
            code=ErrorCode.CRIU_UNUSABLE,
            message=f"CRIU {here.criu} is too old" if here.criu else "CRIU is not installed",
            hint="install CRIU 4.2 or newer on the target",
        )
    elif _version(here.criu) < _version(there.criu):
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


def against_postcopy(here: Engine) -> Iterator[Reason]:
    """What it needs of the kernel: userfaultfd, and that for whoever is no root of this host, too."""
    hint = "`--strategy cold` moves it all the same"
    if "uffd-noncoop" not in here.criu_features:
        message = "post-copy needs uffd-noncoop, which its kernel or CRIU does not have"
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=message, hint=hint)
    elif here.userns_remap and UNPRIVILEGED.read_text().strip() == "0":
        yield Reason(
            code=ErrorCode.INCOMPATIBLE,
            message="post-copy with userns-remap needs vm.unprivileged_userfaultfd=1",
            hint=f"set it there; {hint}",
        )


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
    return reasons


def _hardware(offer: Offer) -> Iterable[Reason]:
    """What its configuration names of the host itself."""
    wanted = fitting.host_config(offer.create)
    named = [entry.get("PathOnHost") for entry in wanted.get("Devices") or ()]
    named += [entry.get("Path") for key in THROTTLES for entry in wanted.get(key) or ()]
    for device in dict.fromkeys(filter(None, named)):
        if not os.path.exists(device):  # noqa: PTH110 - one stat
            yield Reason(code=ErrorCode.INCOMPATIBLE, message=f"there is no {device}, which is given to the container")
    cores = len(os.sched_getaffinity(0))
    if (wanted.get("NanoCpus") or 0) > cores * 10**9:
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=f"it has {cores} cores, fewer than --cpus asks for")
    if (wished := cores_of(wanted.get("CpusetCpus") or "")) - os.sched_getaffinity(0):
        yield Reason(
            code=ErrorCode.INCOMPATIBLE,
            message=f"it has not all of the cores {wanted['CpusetCpus']} that --cpuset-cpus asks for ({len(wished)})",
        )


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


async def _networks(host: Host, offer: Offer, others: list[Reserved]) -> list[Reason]:
    reasons, here = [], {}
    for wanted in offer.networks:
        network = await host.docker.network(wanted.name)
        if network is None:
            reasons += await _missing_network(host, offer, wanted)
        elif network.driver != wanted.driver:
            reasons.append(
                Reason(
                    code=ErrorCode.INCOMPATIBLE,
                    message=f"its network {wanted.name} is a {network.driver}, the source's a {wanted.driver}",
                )
            )
        else:
            here[wanted.name] = network
    promised = {address for other in others for address in other.addresses}
    return reasons + list(fitting.fit_networks(offer, here, promised).reasons)


async def _missing_network(host: Host, offer: Offer, wanted: Network) -> list[Reason]:
    if not wanted.create or host.settings.network_policy != "create":
        hint = "create it there" + (', or set network_policy = "create"' if wanted.create else "")
        message = f"there is no network {wanted.name}"
        return [Reason(code=ErrorCode.NETWORK_MISSING, message=message, hint=hint)]
    _, _, against = fitting.network_here(offer, wanted, await host.docker.networks())
    return [Reason(code=ErrorCode.INCOMPATIBLE, message=against)] if against else []


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
            reasons.append(Reason(code=ErrorCode.VOLUME_CONFLICT, message=message, hint=hint))
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
