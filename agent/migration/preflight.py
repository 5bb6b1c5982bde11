"""Before anything is touched: is there such a container, can it move, what would the peer need to take it?"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.base.errors import Refused
from agent.checkpoint import freezer, proc
from agent.doors.docker_model import Container, Image
from agent.migration import admission, belongings, spec
from agent.migration.host import Host
from agent.migration.obstacles import belongings_against, obstacles, warnings
from agent.migration.subject import Subject, Tree
from agent.migration.view import View, look
from agent.prework.ids import IdMap, IdRange
from agent.prework.tree import Source
from protocol.commands import Migrate, TcpPolicy
from protocol.errors import ErrorCode, Reason
from protocol.peer import ImageRef, Network, Offer, Volume


async def examine(host: Host, request: Migrate, migration: str) -> Subject:
    """Everything about the container that the story needs.

    Raises:
        Refused: with every reason that this side can see; nothing was touched.

    """
    container = await host.docker.find(request.container)
    if container is None:
        raise Refused(
            ErrorCode.NO_SUCH_CONTAINER,
            f"there is no container {request.container} on {host.name}",
            hint="`transship ps` lists them",
        )
    if not container.running:
        raise Refused(
            ErrorCode.NOT_RUNNING,
            f"{container.name} is {container.state}, not running",
            hint="only a running container has state to move; create a stopped one anew at the target",
        )
    view = await look(host.shell, container.pid)
    reasons = list(obstacles(container, view, await host.docker.running_execs(container), host.settings.runtime))
    reasons += await _engine(host)
    image = await host.docker.image(container.image_id)
    if image is None:
        reasons.append(
            Reason(
                code=ErrorCode.NOT_MIGRATABLE,
                message="its image was removed on this host",
                hint="pull it again, then move",
            )
        )
    details = await _describe(host, container, image)
    reasons += belongings_against(details.networks, details.volumes)
    memory = sum(task.resident_bytes for task in proc.tasks(freezer.cgroup_of(container.pid).tasks()))
    reasons += _room(memory)
    if reasons or image is None:
        raise admission.refusal(host.name, container.name, reasons, verb="can't give")
    return await _subject(host, request, migration, container, image, details, view, memory)


async def _engine(host: Host) -> list[Reason]:
    engine = await host.engine()
    reasons = []
    if not admission.criu_is_usable(engine.criu):
        reasons.append(
            Reason(
                code=ErrorCode.CRIU_UNUSABLE,
                message=f"CRIU {engine.criu} is too old" if engine.criu else "CRIU is not installed",
                hint="install CRIU 4.2 or newer",
            )
        )
    for program in ("runc", "nft", "nsenter"):
        if shutil.which(program) is None:
            reasons.append(
                Reason(code=ErrorCode.NOT_MIGRATABLE, message=f"{program} is not installed", hint=f"install {program}")
            )
    return reasons


def _room(memory: int) -> list[Reason]:
    free = proc.memory_available()
    if memory <= free:
        return []
    return [
        Reason(
            code=ErrorCode.NO_MEMORY,
            message=f"{memory >> 20} MiB of memory are needed for the images, {free >> 20} MiB are free here",
        )
    ]


async def _subject(
    host: Host,
    request: Migrate,
    migration: str,
    container: Container,
    image: Image,
    details: spec.Spec,
    view: View,
    memory: int,
) -> Subject:
    tcp = _tcp(request.tcp, details, container, view)
    trees = _trees(container, details.volumes)
    offer = Offer(
        migration=migration,
        source=host.name,
        target=request.to,
        container=container.name,
        container_id=container.id,
        create=details.create,
        restart_policy=dict(container.restart_policy),
        image=ImageRef(
            name=container.image,
            id=image.id,
            diff_ids=image.diff_ids,
            config=dict(image.config),
            tags=image.tags,
            size=image.size,
        ),
        volumes=details.volumes,
        networks=_with_current_addresses(details.networks, tcp),
        tcp=tcp,
        memory_bytes=memory,
        files_bytes=sum(_tree_bytes(tree.source.root) for tree in trees),
        tasks=len(view.processes),
        engine=await host.engine(),
        kernel=os.uname().release,
        machine=os.uname().machine,
        after=request.source,
    )
    return Subject(
        id=container.id,
        name=container.name,
        pid=container.pid,
        cgroup=freezer.cgroup_of(container.pid),
        restart_policy=dict(container.restart_policy),
        auto_remove=container.auto_remove,
        offer=offer,
        trees=tuple(trees),
        data_root=Path(await host.docker.data_root()),
        after=request.source,
        memory_bytes=memory,
        watched=view.watched,
        notes=(*details.notes, *warnings(container, view)),
    )


async def _describe(host: Host, container: Container, image: Image | None) -> spec.Spec:
    networks = {found.network: await host.docker.network(found.network) for found in container.networks}
    volumes = {mount.name: await host.docker.volume(mount.name) for mount in container.mounts if mount.kind == "volume"}
    return spec.spec_of(
        container,
        image,
        {name: network for name, network in networks.items() if network is not None},
        {name: volume for name, volume in volumes.items() if volume is not None},
    )


def _with_current_addresses(networks: tuple[Network, ...], tcp: TcpPolicy) -> tuple[Network, ...]:
    """Only addresses that move along: one that does not must not stand on lo, nor count as taken."""
    if tcp is TcpPolicy.KEEP:
        return networks
    return tuple(network.model_copy(update={"addresses": ()}) for network in networks)


def _tcp(wanted: TcpPolicy, details: spec.Spec, container: Container, view: View) -> TcpPolicy:
    moves = details.address_moves_along
    if wanted is TcpPolicy.REFUSE and view.tcp:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"{container.name} has {len(view.tcp)} TCP connections",
            hint="--tcp close drops them, --tcp keep takes them along where the address moves",
        )
    if wanted is TcpPolicy.KEEP and not moves:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"the address of {container.name} does not move along, so its connections can't be kept",
            hint="give it a static address on a network that both hosts share (macvlan), or use --tcp close",
        )
    if wanted in (TcpPolicy.AUTO, TcpPolicy.REFUSE):
        return TcpPolicy.KEEP if moves else TcpPolicy.CLOSE
    return wanted


def _trees(container: Container, volumes: Sequence[Volume]) -> list[Tree]:
    ids = id_map(container.pid)
    trees = [Tree("root", Source(upper_dir(container), layer=True, merged=f"/proc/{container.pid}/root", ids=ids))]
    for mount in container.mounts:
        wanted = next((volume for volume in volumes if volume.name == mount.name and belongings.copied(volume)), None)
        if mount.kind == "volume" and wanted is not None and all(tree.name != f"volume:{mount.name}" for tree in trees):
            trees.append(Tree(f"volume:{mount.name}", Source(mount.source, ids=ids)))
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
    raise Refused(
        ErrorCode.NOT_MIGRATABLE,
        "its writable layer is not an overlay",
        hint="the storage drivers overlay2 and the containerd image store with overlayfs are supported",
    )


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
