"""The story of a checkpoint, from top to bottom.

The container stands still from the freeze until its files are read; its memory is in CRIU's images by then, and is
written out after that. Whatever fails, the container runs on. It is ended, where that was asked for, only when the
archive is complete and on the disk; that is the one decision here, and from it on nothing is taken back.

To the journal it is a move to this host itself that is taken back: so a restarted agent takes it back, too.
"""

import asyncio
import fcntl
import json
import os
import stat
import struct
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import __version__
from agent.archive import layout
from agent.archive.writer import ArchiveWriter
from agent.base.errors import StepFailed
from agent.base.tasks import both, to_the_end, until_it_works
from agent.base.undo import Undo
from agent.checkpoint import criu, freezer
from agent.migration import kept, leaving, source
from agent.migration.files import alone
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject, Tree
from agent.network import quiet
from agent.prework import container_log, init, pack, printed
from agent.prework.container_log import Mark
from agent.prework.stream import packed
from agent.strategy.dump import Dump
from agent.vault.places import Place
from protocol.base import utc_now
from protocol.checkpoint import CheckpointInfo
from protocol.status import Phase

FILE_CHUNK = 1 << 20
END_SECONDS = 10.0
LOOK_SECONDS = 0.01
SETTLED_SECONDS = 0.05
"""dockerd writes a line some milliseconds after it was printed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What kind of checkpoint."""

    id: str
    leave_running: bool
    with_image: bool


Keep = Callable[[layout.Taken], Awaitable[CheckpointInfo]]
"""Returns when the archive is where it outlives this host's crash, and is listed."""


async def take(run: Run, subject: Subject, host: Host, place: Place, wanted: Wanted, keep: Keep) -> CheckpointInfo:
    """Write one running container into an archive, and leave it exactly as it was; or end it, when that is safe."""
    writer = ArchiveWriter(place.put)
    logs = container_log.places(subject.data_root, subject.id)
    dump = Dump(host.shell, run.id)
    async with Undo(failed=run.undo_failed) as undo:
        undo.first("remove what there is of the archive", place.drop)
        if not wanted.leave_running:
            undo.first("put the restart policy back", leaving.put_policy_back, host, run, subject)
            await host.docker.set_restart_policy(subject.id, {"Name": "no"})  # nobody else may start it
        await run.enter(Phase.RESERVED)
        mark = container_log.mark(logs)
        await write_head(writer, subject, host, wanted, mark)
        undo.first("remove the images", dump.release)
        await dump.make_ready(subject.id, subject.memory_bytes, subject.options)
        await dump.start(subject.id, host.name)
        await run.enter(Phase.COPYING)
        await alone(subject.pid, subject.cgroup)

        undo.first("thaw and unlock the container", source.release, host, subject)
        tasks = await source.hold(run, subject, host)
        await run.enter(Phase.FROZEN)
        dumping = dump.take(host.settings.deadlines.dump, host.name)
        dump_ms, _ = await both(dumping, settled(subject, logs, mark))
        sizes = await lengths(subject)  # not beside the dump: CRIU gives names to files that had lost theirs
        await write_trees(writer, subject, sizes)
        await writer.small(layout.PRINTED, await last_words(logs, mark))
        if wanted.leave_running:
            await source.release(host, subject)
        frozen_ms = (time.monotonic() - run.figures["frozen_at"]) * 1000

        await write_images(writer, dump)
        taken = layout.Taken(tasks=len(tasks), frozen_ms=round(frozen_ms, 3), dump_ms=round(dump_ms, 3))
        await writer.json(layout.TAKEN, taken)
        await writer.close()
        info = await keep(taken)
        if not wanted.leave_running:
            run.deciding = True  # from here on no cancel is taken
            await to_the_end(end(run, subject, host, undo))
        undo.detach()
    if not wanted.leave_running:
        seen = f"{run.id}: seeing that {subject.name} has ended"
        # an agent that is being stopped waits for it, too: what it says is to be so
        await until_it_works(seen, lambda: to_the_end(see_it_end(subject, host)), host.settings.deadlines.ask_again)
    await dump.release()
    return info


async def end(run: Run, subject: Subject, host: Host, undo: Undo) -> None:
    """The frozen copy dies while it is still locked; the container stays, as one that was stopped."""
    to_keep = kept.Kept(subject.restart_policy, subject.started_at)
    await asyncio.to_thread(kept.keep, host.settings.state_dir, subject.id, to_keep)
    await run.note_down(stopped=True)  # nobody starts it anew, after a crash either: it is in the archive
    run.stopped = True
    undo.detach()
    await quiet.drop(subject.pid)
    await freezer.kill_frozen(subject.cgroup)


async def see_it_end(subject: Subject, host: Host) -> None:
    """Wait until dockerd knows that it has ended. Its restart policy is `no`, and comes back when it is started.

    Raises:
        StepFailed: dockerd does not say so.

    """
    limit = time.monotonic() + END_SECONDS
    while (found := await host.docker.find(subject.id)) is not None and found.running:
        if time.monotonic() > limit:
            raise StepFailed(f"dockerd says after {END_SECONDS:g} s still that {subject.name} runs")
        await asyncio.sleep(LOOK_SECONDS)


# --- what goes into the archive ---


async def write_head(writer: ArchiveWriter, subject: Subject, host: Host, wanted: Wanted, mark: Mark | None) -> None:
    """All that does not have to stand still: what it is, its image, its log so far."""
    manifest = layout.Manifest(
        id=wanted.id,
        at=utc_now(),
        agent_version=__version__,
        host=host.name,
        container=subject.name,
        container_id=subject.id,
        left_running=wanted.leave_running,
        image_included=wanted.with_image,
        offer=subject.offer,
        notes=subject.notes,
    )
    await writer.json(layout.MANIFEST, manifest)
    found = await host.docker.find(subject.id)
    created = str(found.raw.get("Created", "")) if found is not None else ""
    await writer.json(layout.CONFIG, layout.config_dump(manifest, created, "runc"))
    await writer.json(layout.SPEC, layout.spec_dump(await asyncio.to_thread(oci_spec, subject.id), manifest))
    await writer.json(layout.NETWORKS, layout.network_status(subject.offer))
    await writer.json(layout.BINDS, bind_mounts(subject))
    if wanted.with_image:
        await writer.pieces(layout.LAYERS, host.docker.save_image(subject.offer.image.id))
    for name, path, size in mark.segments() if mark is not None else ():
        member = layout.LOG if name == "json.log" else layout.LOGS + name
        await writer.member(member, size, read_file(path, size))
    if subject.offer.init:
        program = b"".join([chunk async for chunk in init.read(subject.pid)])
        await writer.small(layout.INIT, program)


def oci_spec(container_id: str) -> dict[str, Any]:
    """The bundle's configuration, which runc's state says where to find."""
    state = json.loads(criu.runc_state(container_id).read_text())
    for label in state["config"].get("labels") or []:
        if label.startswith("bundle="):
            spec: dict[str, Any] = json.loads((Path(label.removeprefix("bundle=")) / "config.json").read_text())
            return spec
    return {}


def bind_mounts(subject: Subject) -> list[dict[str, object]]:
    """As CRI-O writes it: CRIU can't bind a folder on a file, so whoever restores has to know which it was."""
    found: list[dict[str, object]] = []
    for volume in subject.offer.volumes:
        if volume.kind == "bind":
            mode = Path(volume.name).stat().st_mode
            found.append(
                {
                    "source": volume.name,
                    "destination": volume.destination,
                    "file_type": "directory" if stat.S_ISDIR(mode) else "file",
                    "permissions": stat.S_IMODE(mode),
                }
            )
    return found


def _archived(subject: Subject) -> Iterator[tuple[str, Tree]]:
    """The trees that go into the archive. Not what is mounted from the host: that is the host's."""
    for tree in subject.trees:
        if tree.name.startswith("volume:"):
            yield layout.volume_member(tree.name.removeprefix("volume:")), tree
    for tree in subject.trees:
        if tree.name == "root":
            yield layout.ROOT, tree


async def lengths(subject: Subject) -> dict[str, int]:
    """How long the stream of each tree will be. A tar has to say so first, and nothing changes while all is frozen."""
    return {member: await asyncio.to_thread(pack.length, tree.source) for member, tree in _archived(subject)}


async def write_trees(writer: ArchiveWriter, subject: Subject, sizes: dict[str, int]) -> None:
    for member, tree in _archived(subject):
        async with packed(tree.source, live=False) as stream:
            await writer.member(member, sizes[member], stream)
        if member == layout.ROOT:
            await writer.json(layout.DELETED, await asyncio.to_thread(deleted, tree.source.root))


def deleted(upper: str) -> list[Any]:
    """Paths of the image that the writable layer hides: overlay marks each by a character device 0/0."""
    found = []
    for folder, folders, names in os.walk(upper):
        for name in (*folders, *names):
            path = os.path.join(folder, name)  # noqa: PTH118 - many files
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                found.append("/" + os.path.relpath(path, upper))
    return sorted(found)


async def last_words(logs: dict[str, Path], mark: Mark | None) -> bytes:
    """What was printed since the log files were read, as frames.

    Without the marker of a move: it would stay in the log of a container that goes on. So a line of which only a half
    was printed is missing from the copy's log.
    """
    if mark is None:
        return b""
    entries = await printed.all_of(logs, mark, frozenset())
    mark.close()
    return b"".join(container_log.frames(entries))


async def settled(subject: Subject, logs: dict[str, Path], mark: Mark | None) -> None:
    """Wait for dockerd to have written what a frozen container has printed, as far as that can be seen."""
    if mark is None:
        return
    current = logs[mark.name]
    end = time.monotonic() + printed.DRAIN_SECONDS
    before, since = -1, time.monotonic()
    while time.monotonic() < end:
        now = current.stat().st_size if current.exists() else 0
        if now != before or any(waiting(Path(f"/proc/{subject.pid}/fd/{stream}")) for stream in (1, 2)):
            before, since = now, time.monotonic()
        elif time.monotonic() - since > SETTLED_SECONDS:
            return
        await asyncio.sleep(LOOK_SECONDS)


def waiting(pipe: Path) -> int:
    """Bytes in a pipe that nobody has read yet; 0 for what is no pipe."""
    try:
        if not stat.S_ISFIFO(pipe.stat().st_mode):
            return 0
        fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        found = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", found)[0])
    finally:
        os.close(fd)


async def write_images(writer: ArchiveWriter, dump: Dump) -> None:
    """CRIU's images, flat; each is given back to the memory as soon as it is written out."""
    await writer.folder(layout.IMAGES)
    for path in sorted(dump.images.iterdir()):
        if path.is_file():
            size = path.stat().st_size
            await writer.member(layout.IMAGES + path.name, size, read_file(path, size))
            path.unlink()
    for member in (layout.STATS, layout.DUMP_LOG):
        path = dump.work / member
        if path.is_file():
            size = path.stat().st_size
            await writer.member(member, size, read_file(path, size))


async def read_file(path: Path, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while size > 0:
            chunk = await to_the_end(asyncio.to_thread(os.read, fd, min(size, FILE_CHUNK)))
            if not chunk:
                return
            size -= len(chunk)
            yield chunk
    finally:
        os.close(fd)
