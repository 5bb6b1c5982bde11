"""The story of a container that is put to sleep on its own host, from top to bottom; agent/runtime/wake.py wakes it.

It needs nothing of dockerd, which refuses every request when it is about to end: what has to be known of the container
was asked before. Until the images are complete, fsynced and have their name, all of it is taken back: the container
runs on. That rename is the one decision; the frozen container is ended after it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.base.durable import publish
from agent.base.errors import AgentError, CommandFailed, ContainerGone
from agent.base.tasks import beside, to_the_end
from agent.base.undo import Undo
from agent.checkpoint import criu, freezer, images, measure, proc, resume
from agent.checkpoint.criu import GHOST_LIMIT, CriuOptions
from agent.checkpoint.diagnosis import dump_failed
from agent.checkpoint.freezer import Cgroup
from agent.doors.docker_model import Container
from agent.doors.handover import give_images_to
from agent.doors.restore_scripts import put_scripts
from agent.migration import admission, connections, preflight
from agent.migration.host import Host
from agent.migration.obstacles import obstacles
from agent.migration.view import View, look
from agent.network import identity, lock, quiet
from agent.network.namespace import is_ours
from agent.runtime import asleep, handover
from agent.shutdown.wishes import Wishes
from agent.strategy import dead
from agent.vault.take import oci_spec
from protocol.commands import TcpPolicy
from protocol.errors import ErrorCode, Reason

END_SECONDS = 5.0
LOOK_SECONDS = 0.02
ROOT = Path(asleep.ROOT)
OWN_ADDRESS = "net.ipv4.ip_nonlocal_bind"
AWAKE = """\
# Run in the container's network namespace when dockerd has attached the network, before its tasks run.
nft -f {folder}/{unlock}
ip -force -batch {folder}/{down} 2>/dev/null
printf {bind} >/proc/sys/net/ipv4/ip_nonlocal_bind
"""


@dataclass(frozen=True, slots=True)
class Slept:
    """How it went."""

    bytes: int
    tasks: int
    frozen_ms: float
    """Until it was ended."""


@dataclass(frozen=True, slots=True)
class _Body:
    """The container as the kernel has it."""

    container: Container
    pid: int
    group: Cgroup
    options: CriuOptions
    upper: str

    @property
    def part(self) -> Path:
        return ROOT / (self.container.id + asleep.PART)

    @property
    def asleep(self) -> Path:
        return ROOT / self.container.id

    @property
    def waking(self) -> Path:
        """Where the folder lies when it is used."""
        return ROOT / (self.container.id + asleep.WAKING)


async def put_to_sleep(host: Host, container: Container, wishes: Wishes, reason: str) -> Slept:
    """Write a running container's memory to the disk, and end it; or leave it running as it was.

    Raises:
        Refused: what stands against it; nothing was touched but programs of `docker exec`.
        FreezeFailed, DumpFailed, StepTimeout: it runs on.

    """
    body = await examine(host, container)
    async with Undo() as undo:
        undo.first("remove what there is of the images", remove, body.part)
        await asyncio.to_thread(_lay_out, body, reason)
        undo.first("thaw and unlock the container", release, host, body.pid, body.group)
        keep = body.options.tcp is TcpPolicy.KEEP
        held = await quiet.hold(host.shell, body.pid, body.group, host.settings.deadlines.freeze, accepted=keep)
        tasks = len(body.group.tasks())
        await _dump(host, body)
        size = await to_the_end(asyncio.to_thread(_complete, body, wishes, reason, await host.criu_version()))
        await to_the_end(_end(host, body, undo))
    return Slept(size, tasks, round((time.monotonic() - held.frozen_at) * 1000, 1))


async def examine(host: Host, container: Container) -> _Body:
    """Everything that the story needs.

    Raises:
        Refused: with every reason.

    """
    pid = first_process(container.id)
    # its start may have been so lately that Docker's word of it is older
    container = replace(container, pid=pid, running=True, state="paused" if container.paused else "running")
    group = freezer.cgroup_of(pid)
    await end_foreign(pid, group)
    view = await look(host.shell, pid)
    memory = await asyncio.to_thread(measure.image_bytes, pid, group.tasks())
    reasons = [*obstacles(container, view, (), host.settings.runtime), *_against(host, container), *_room(host, memory)]
    if reasons:
        raise admission.refusal(host.name, container.name, reasons, verb="can't hibernate")
    return _Body(
        container,
        pid,
        group,
        CriuOptions(_tcp(container, view), ghost_limit=GHOST_LIMIT + memory, watched=view.watched),
        preflight.upper_dir(container),
    )


def first_process(container_id: str) -> int:
    """As runc knows it, which is asked for nothing.

    Raises:
        ContainerGone: it does not run.

    """
    state = json.loads(criu.runc_state(container_id).read_text())
    pid = int(state["init_process_pid"])
    if str(proc.start_time(pid)) != str(state.get("init_process_start")):
        raise ContainerGone(f"{container_id[:12]} has ended")
    return pid


def sleeps(container_id: str) -> bool:
    """Whether there is memory of it to be woken with."""
    return (ROOT / container_id / asleep.RECORD).exists()


async def end_foreign(pid: int, group: Cgroup) -> None:
    """End what `docker exec` and probes of its health have put into it: they are no part of its tree, and CRIU can't
    take them along; a stop would end them too.
    """
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        found = proc.tasks(group.tasks())
        own = {one.pid for one in proc.own(found, pid)}
        foreign = [one.pid for one in found if one.pid not in own]
        if not foreign:
            return
        for other in foreign:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        await asyncio.sleep(LOOK_SECONDS)


def _against(host: Host, container: Container) -> list[Reason]:
    found = []
    if container.runtime != host.settings.runtime:
        hint = f"`transship adopt {container.name}` makes it anew with the runtime {host.settings.runtime}"
        message = f"it is run by {container.runtime or 'runc'}, which would start it cold"
        found.append(Reason(code=ErrorCode.NOT_MIGRATABLE, message=message, hint=hint))
    if container.auto_remove:
        message = "it is removed when it ends (--rm), and its memory would be of no use"
        found.append(Reason(code=ErrorCode.NOT_MIGRATABLE, message=message, hint="run it without --rm"))
    return found


def _room(host: Host, memory: int) -> list[Reason]:
    free = shutil.disk_usage(ROOT).free - host.settings.limits.disk_reserve_bytes
    if memory <= free:
        return []
    message = f"{memory >> 20} MiB are needed in {ROOT}, {max(0, free) >> 20} MiB are free"
    return [Reason(code=ErrorCode.NO_SPACE, message=message)]


def _tcp(container: Container, view: View) -> TcpPolicy:
    """Kept where its address is its own, for then it is the same at the next start."""
    ends = (container.raw.get("NetworkSettings") or {}).get("Networks") or {}
    fixed = bool(ends) and all((end.get("IPAMConfig") or {}).get("IPv4Address") for end in ends.values())
    return connections.policy(container, TcpPolicy.AUTO, len(view.tcp), address_moves_along=fixed)


# --- the steps; each blocks for as long as the disk takes ---


def _lay_out(body: _Body, reason: str) -> None:
    shutil.rmtree(body.part, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        asleep.use_up(str(body.waking))  # what was woken is what is put to sleep now
    body.part.mkdir(parents=True, mode=0o700)
    ROOT.chmod(0o700)
    (body.part / "reason").write_text(reason)  # first: without it the next agent does not know what this one was at
    for folder in (handover.IMAGES, handover.WORK):
        (body.part / folder).mkdir(mode=0o700)
    addresses = identity.addresses_of(body.pid)
    put_scripts(body.part, body.waking, body.options, addresses)
    (body.part / handover.CRIU_CONF).rename(body.part / asleep.CRIU_CONF_KEPT)
    (body.part / asleep.UNLOCK).write_text(lock.UNLOCK)
    (body.part / asleep.STAND_DOWN).write_text(identity.stand_down(addresses))
    wanted = (body.container.raw["HostConfig"].get("Sysctls") or {}).get(OWN_ADDRESS, "0")
    text = AWAKE.format(folder=body.waking, unlock=asleep.UNLOCK, down=asleep.STAND_DOWN, bind=int(wanted or 0))
    (body.part / asleep.AWAKE).write_text(text)
    config = body.part / "dump.conf"
    config.write_text(body.options.for_dump())
    criu.make_shadow_root(body.container.id, config, body.part / "root")


async def _dump(host: Host, body: _Body) -> None:
    work = body.part / handover.WORK
    command = criu.dump_command(body.part / "root", body.part / handover.IMAGES, work, body.container.id)
    try:
        async with beside(dead.see_to(body.part)):
            await host.shell.run(*command, label="dump", timeout=host.settings.deadlines.dump, killable=False)
    except CommandFailed as error:
        name = f"{body.container.name}-hibernate-dump.log"
        raise dump_failed(work / "dump.log", name, host.name, error) from error


def _complete(body: _Body, wishes: Wishes, reason: str, version: str) -> int:
    """Have all of it on the disk, the record of it last; how many bytes there are."""
    folder = body.part / handover.IMAGES
    images.mend(folder)
    give_images_to(folder, preflight.id_map(body.pid))
    shutil.rmtree(body.part / "root")
    record: dict[str, Any] = {
        "container_id": body.container.id,
        "name": body.container.name,
        "reason": reason,
        "at": time.time(),
        "on_stale": wishes.on_stale,
        "upper": body.upper,
        "pid": body.pid,
        "pid_start": proc.start_time(body.pid),
        "boot": boot_id(),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "fingerprint": asleep.fingerprint(oci_spec(body.container.id), body.upper, version),
    }
    (body.part / asleep.RECORD).write_text(json.dumps(record))
    for path in sorted(body.part.rglob("*"), reverse=True):
        if path.is_file() or path.is_dir():
            asleep.sync(str(path))
    asleep.sync(str(body.part))
    return int(record["bytes"])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def _end(host: Host, body: _Body, undo: Undo) -> None:
    """The decision, and what follows from it."""
    try:
        await asyncio.to_thread(publish, body.part, body.asleep)
    except OSError:
        with contextlib.suppress(
            FileNotFoundError
        ):  # it may have its name by now, and it will run on: never to be woken
            body.asleep.rename(body.part)
        raise
    undo.detach()
    with contextlib.suppress(AgentError, OSError):  # then their other sides have to find out by themselves
        if body.options.tcp is TcpPolicy.CLOSE and not is_ours(body.pid):
            await quiet.hang_up(host.shell, body.pid)
        else:
            await quiet.drop(body.pid)
    await freezer.kill_frozen(body.group)


async def release(host: Host, pid: int, group: Cgroup) -> None:
    """Let it run on, as it was; of one that is gone, see that runc can delete it."""
    if pid not in group.tasks():
        await freezer.thaw_if_empty(group)
    else:
        try:
            await resume.give_back(group)
            await lock.unlock(host.shell, pid)
        finally:  # a mute container is bad, a frozen one is worse
            await resume.thaw(group)


async def remove(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
