"""Before anything is touched: is there such a container, can it move, what would the peer need to take it?"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import ContainerGone, Refused
from agent.checkpoint import freezer, measure, proc
from agent.doors.docker_model import Container, Exec, Image
from agent.migration import admission, belongings, connections, kept, pins, spec
from agent.migration.host import Host
from agent.migration.obstacles import (
    belongings_against,
    bound_against,
    foreign,
    marks_against,
    network_against,
    obstacles,
    shared_volumes,
    warnings,
)
from agent.migration.subject import Subject, Tree
from agent.migration.view import View, look
from agent.network import additions, sockets
from agent.prework import init
from agent.prework.ids import IdMap, IdRange
from agent.prework.tree import Source
from protocol.commands import ExecPolicy, Migrate, Strategy
from protocol.errors import ErrorCode, Reason, Why
from protocol.peer import ImageRef, Listening, Network, Offer, Volume
from protocol.reasons import against


@dataclass(frozen=True, slots=True)
class Examined:
    """A container, as far as this side can see."""

    container: Container
    reasons: tuple[Reason, ...]
    subject: Subject | None
    """None where it is so that nothing of it could be offered to anybody."""


async def examine(host: Host, request: Migrate, migration: str) -> Subject:
    """Everything about the container that the story needs.

    Raises:
        Refused: with every reason that this side can see; nothing was touched.

    """
    found = await look_at(host, request, migration)
    if found.reasons or found.subject is None:
        raise admission.refusal(host.name, found.container.name, found.reasons, verb="can't give")
    return found.subject


async def look_at(host: Host, request: Migrate, migration: str, *, measured: bool = True) -> Examined:
    """The same with what stands against it; `measured`: how large its files are, too, which may take its time.

    Raises:
        Refused: there is no such container, or it does not run.

    """
    container = await host.docker.find(request.container)
    if container is None:
        raise Refused(
            ErrorCode.NO_SUCH_CONTAINER,
            f"there is no container {request.container} on {host.name}",
            hint="`transship ps` lists them",
        )
    _has_to_run(container)
    try:
        return await _look_at(host, request, migration, container, measured=measured)
    except ContainerGone:  # it has ended meanwhile: what Docker says of it by now tells more
        if (now := await host.docker.find(container.id)) is not None:
            _has_to_run(now)
        raise


def _has_to_run(container: Container) -> None:
    if not container.running or not container.pid:  # one that waits for its restart counts as running
        hint = "only a running container has state to move; create a stopped one anew at the target"
        reason = against(Why.NOT_RUNNING, f"{container.name} is {container.state}, not running", hint)
        raise Refused(ErrorCode.NOT_RUNNING, reason.message, hint=hint, reasons=(reason,))


async def _look_at(host: Host, request: Migrate, migration: str, container: Container, *, measured: bool) -> Examined:
    execs = await _running_execs(host, request, container)
    view = await look(host.shell, container.pid)
    reasons = list(obstacles(container, view, execs, host.settings.runtime))
    reasons += await _engine(host, view)
    precopy = (*admission.against_precopy(await host.engine()), *marks_against(view))
    reasons += precopy if request.strategy is Strategy.PRECOPY else ()
    image = await host.docker.image(container.image_id)
    if image is None:
        reasons.append(against(Why.IMAGE_REMOVED, "its image was removed on this host", "pull it again, then move"))
    pinned = pins.recall(host.settings.state_dir, container.id)
    details = await spec.describe(host.docker, container, image, pinned)
    reasons += belongings_against(details.networks, details.volumes)
    held = await asyncio.to_thread(sockets.on_the_host, view.sockets) if view.on_host_network else ()
    bound = await asyncio.to_thread(_bound, container.pid, view, held)
    wished = {address.partition("/")[0] for network in details.networks for address in network.addresses}
    reasons += bound_against(bound, wished, address_moves_along=details.address_moves_along)
    reasons += () if view.on_host_network else await _own_network(host, container)
    copied = [volume.name for volume in details.volumes if belongings.copied(volume)]
    reasons += shared_volumes(container, copied, await host.docker.list(all=False))
    tasks = freezer.cgroup_of(container.pid).tasks()
    memory = await asyncio.to_thread(measure.image_bytes, container.pid, tasks)
    reasons += _room(memory)
    subject = None
    if image is not None:
        try:
            seen = _Seen(container, image, details, view, memory, held, precopy)
            subject = await _subject(host, request, migration, seen, measured=measured)
        except Refused as refused:
            reasons += refused.reasons
    return Examined(container, tuple(reasons), subject)


@dataclass(frozen=True, slots=True)
class _Seen:
    container: Container
    image: Image
    details: spec.Spec
    view: View
    memory: int
    held: Sequence[sockets.Place]
    against_precopy: tuple[Reason, ...]


def image_ref(container: Container, image: Image) -> ImageRef:
    return ImageRef(
        name=container.image,
        id=image.id,
        diff_ids=image.diff_ids,
        config=dict(image.config),
        tags=image.tags,
        size=image.size,
    )


def _listening(held: Sequence[sockets.Place]) -> tuple[Listening, ...]:
    return tuple(Listening(protocol=place.protocol, address=str(place.address), port=place.port) for place in held)


def _bound(pid: int, view: View, held: Sequence[sockets.Place]) -> sockets.Bound:
    return sockets.bound_to(held) if view.on_host_network else sockets.bound(pid)


async def _own_network(host: Host, container: Container) -> tuple[Reason, ...]:
    """Against what it has made of its network by itself."""
    return network_against(
        await additions.look(host.shell, container.pid, _given(container)),
        await asyncio.to_thread(sockets.extraordinary, container.pid),
    )


def _given(container: Container) -> additions.Given:
    """What Docker has put into the container's network."""
    networks = container.raw["NetworkSettings"].get("Networks") or {}
    gateways = {str(each.get(key) or "") for each in networks.values() for key in ("Gateway", "IPv6Gateway")}
    return additions.Given(
        addresses=frozenset(address.partition("/")[0] for each in container.networks for address in each.addresses),
        macs=frozenset(each.mac for each in container.networks if each.mac),
        gateways=frozenset(gateways - {""}),
    )


async def _running_execs(host: Host, request: Migrate, container: Container) -> tuple[Exec, ...]:
    """What `docker exec` runs in it; none, if a wait for its end is wanted and was long enough."""
    execs = await host.docker.running_execs(container)
    if request.execs is not ExecPolicy.WAIT or not foreign(container, execs):
        return execs
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(host.settings.deadlines.execs), host.docker.events(time.time_ns()) as events:
            execs = await host.docker.running_execs(container)  # one may have ended before we listened
            while foreign(container, execs):
                event = await anext(events)
                if event.action == "exec_die" and event.container_id == container.id:
                    execs = await host.docker.running_execs(container)
    return execs


async def _engine(host: Host, view: View) -> list[Reason]:
    engine = await host.engine()
    reasons = []
    if not admission.criu_is_usable(engine.criu):
        message = f"CRIU {engine.criu} is too old" if engine.criu else "CRIU is not installed"
        reasons.append(against(Why.CRIU_VERSION, message, "install CRIU 4.2 or newer"))
    elif "seccomp_suspend" not in engine.criu_features and any(process.seccomp for process in view.processes):
        reasons.append(against(Why.SECCOMP, "its processes have a seccomp filter, which this kernel can't suspend"))
    for program in ("runc", "nft", "nsenter"):
        if shutil.which(program) is None:
            reasons.append(against(Why.TOOL_MISSING, f"{program} is not installed", f"install {program}"))
    return reasons


def _room(memory: int) -> list[Reason]:
    free = proc.memory_available()
    if memory <= free:
        return []
    message = f"{memory >> 20} MiB of memory are needed for the images, {free >> 20} MiB are free here"
    return [against(Why.NO_MEMORY, message)]


async def _subject(host: Host, request: Migrate, migration: str, seen: _Seen, *, measured: bool) -> Subject:
    container, details, view, memory = seen.container, seen.details, seen.view, seen.memory
    tcp = connections.policy(container, request.tcp, len(view.tcp), address_moves_along=details.address_moves_along)
    volumes = _told_apart(details.volumes)
    trees = _trees(container, volumes)
    places = [tree.source.root for tree in trees if not tree.bind]  # what of the rest is wanted, is not known yet
    if digest := init.digest_of(container.pid):
        details.create["HostConfig"]["Init"] = True  # it may be the engine's default, and not the target's
    offer = Offer(
        migration=migration,
        source=host.name,
        target=request.to,
        container=container.name,
        container_id=container.id,
        create=details.create,
        restart_policy=kept.policy_of(host.settings.state_dir, container),
        image=image_ref(container, seen.image),
        volumes=volumes,
        networks=details.networks if details.address_moves_along else _without_addresses(details.networks),
        pinned=details.pinned,
        listening=_listening(seen.held),
        init=digest,
        tcp=tcp,
        memory_bytes=memory,
        files_bytes=await asyncio.to_thread(lambda: sum(map(_tree_bytes, places))) if measured else 0,
        tasks=len(view.processes),
        engine=await host.engine(),
        kernel=os.uname().release,
        machine=os.uname().machine,
        cpu=await host.cpu(),
        after=request.source,
        rehearsal=request.rehearse,
    )
    return Subject(
        id=container.id,
        name=container.name,
        pid=container.pid,
        cgroup=freezer.cgroup_of(container.pid),
        restart_policy=kept.policy_of(host.settings.state_dir, container),
        auto_remove=container.auto_remove,
        offer=offer,
        trees=tuple(trees),
        data_root=Path(await host.docker.data_root()),
        after=request.source,
        memory_bytes=memory,
        started_at=container.started_at,
        watched=view.watched,
        against_precopy=seen.against_precopy,
        notes=(*details.notes, *warnings(container, view)),
    )


def _without_addresses(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    """One that does not move along must not stand on lo, nor count as taken."""
    return tuple(network.model_copy(update={"addresses": ()}) for network in networks)


def _told_apart(volumes: Sequence[Volume]) -> tuple[Volume, ...]:
    """Folders that are mounted as such can be copied; single files, sockets and devices can't."""
    return tuple(
        volume.model_copy(update={"copyable": volume.kind == "bind" and Path(volume.name).is_dir()})
        for volume in volumes
    )


def _trees(container: Container, volumes: Sequence[Volume]) -> list[Tree]:
    ids = id_map(container.pid)
    trees = [Tree("root", Source(upper_dir(container), layer=True, merged=f"/proc/{container.pid}/root", ids=ids))]
    places = {mount.destination: mount.source for mount in container.mounts}
    for number, volume in enumerate(volumes):
        place = Source(places[volume.destination], ids=ids)
        if all(tree.source.root != place.root for tree in trees):
            if belongings.copied(volume):
                trees.append(Tree(f"volume:{volume.name}", place))
            elif volume.copyable:
                trees.append(Tree(f"bind:{number}", place))
    return trees


def upper_dir(container: Container) -> str:
    """The folder of the writable layer, whichever image store made the overlay: its mount's own option says it.

    Raises:
        Refused: the root file system is no overlay.

    """
    for line in Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] != "/":
            continue
        kind, _, options = rest.split(" ", 2)
        upper = [option[9:] for option in options.split(",") if option.startswith("upperdir=")]
        if kind == "overlay" and upper and upper[0].startswith("/"):
            return upper[0]
        driver = container.raw.get("GraphDriver") or {}
        if found := (driver.get("Data") or {}).get("UpperDir"):
            return str(found)
    hint = "the storage drivers overlay2 and the containerd image store with overlayfs are supported"
    reason = against(Why.STORAGE_DRIVER, "its writable layer is not an overlay", hint)
    raise Refused(reason.code, reason.message, hint=hint, reasons=(reason,))


def id_map(pid: int) -> IdMap:
    """How ids in the container stand on this host; without userns-remap they are the same."""

    def ranges(name: str) -> tuple[IdRange, ...]:
        rows = [line.split() for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()]
        found = tuple(IdRange(int(inner), int(outer), int(length)) for inner, outer, length in rows)
        return () if all(each.container == each.host for each in found) else found

    return IdMap(ranges("uid_map"), ranges("gid_map"))


def _tree_bytes(root: str) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118 - many files
            except OSError:
                continue
    return total
