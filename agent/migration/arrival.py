"""What has come of a container at its target: taken in, checked against the manifest, and proved to be restored."""

from collections.abc import Mapping
from pathlib import Path

from agent.base.errors import CorruptPart, RestoreFailed, StepFailed
from agent.checkpoint import freezer, proc
from agent.checkpoint.criu import tasks_in
from agent.checkpoint.segments import SegmentWriter
from agent.doors.handover import RestoreResult, StagedInfo
from agent.doors.peer_server import Stream
from agent.migration import admission, belongings
from agent.migration.host import Host
from agent.migration.run import Run
from agent.prework.stream import unpacked
from agent.runtime import handover
from protocol.peer import Manifest, Offer, SentPart

IMAGE_ROOM = 64 << 20
"""Beside the memory itself: CRIU's other images, and what the container allocates until it is frozen."""
IMAGE_FACTOR = 1.25
DESCRIPTORS, MOST_DESCRIPTORS = "descriptors.json", 64 << 10
"""runc's own image, which it writes before it calls CRIU."""
ASIDE = {handover.INVENTORY: handover.INVENTORY_THERE}
"""CRIU waits for this image, and takes it for the sign that all are there."""


def image_room(offer: Offer) -> int:
    """Bytes of tmpfs to set aside for the images of this container.

    Of rounds of pre-copy all memory may be there twice: until a round is whole, what it replaces is kept.
    """
    return int(offer.memory_bytes * (IMAGE_FACTOR + offer.rounds)) + IMAGE_ROOM


async def take_segments(
    stream: Stream,
    folder: Path,
    places: Mapping[str, Path] | None = None,
    *,
    limit: int | None = None,
    aside: Mapping[str, str] = ASIDE,
) -> None:
    """Write each segment where it belongs: below `folder`, or to one of `places`; at most `limit` bytes.

    Raises:
        CorruptPart: what comes is no such tarball.
        StepFailed: there is no room for it.

    """
    writer = SegmentWriter(folder, places, limit=limit, aside=aside)
    try:
        async for chunk in aiter(stream):
            writer.feed(chunk)
        writer.finish()
    except OSError as error:
        raise StepFailed(f"there is no room for the images: {error}", hint="free memory on the target") from error
    finally:
        writer.close()


async def take_descriptors(stream: Stream, images: Path) -> None:
    """What runc wants to know before it calls CRIU: it comes ahead of the images, and again with them.

    Raises:
        CorruptPart: it is larger than that can be.

    """
    content = b""
    async for chunk in aiter(stream):
        content += chunk
        if len(content) > MOST_DESCRIPTORS:
            raise CorruptPart(f"{DESCRIPTORS} is larger than the names of three streams")
    (images / DESCRIPTORS).write_bytes(content)


async def take_files(host: Host, run: Run, offer: Offer, staged: StagedInfo | None, name: str, stream: Stream) -> None:
    """Apply a pass of one tree: `root:N`, `volume:NAME:N` or `bind:NUMBER:N`.

    Raises:
        StepFailed: the container is not staged yet.
        CorruptPart: there is no such tree.

    """
    if staged is None:
        raise StepFailed("the container is not staged here")
    kind, *rest = name.split(":")
    chunks = admission.while_room(host, aiter(stream))
    if kind == "root":
        await unpacked(chunks, str(staged.root), ids=staged.ids, devices=True)
    elif kind == "volume" and len(rest) >= 1:
        mountpoint = await belongings.volume_path(host, run, offer, rest[0])
        await unpacked(chunks, str(mountpoint), ids=staged.ids)
    elif kind == "bind" and len(rest) >= 1:
        with belongings.bind_folder(run, rest[0]) as place:
            await unpacked(chunks, place, ids=staged.ids)
    else:
        raise CorruptPart(f"a part of an unknown kind: {name!r}")


def check(manifest: Manifest, parts: Mapping[str, SentPart], images: Path) -> None:
    """All of it is here, as it was sent; raises CorruptPart where it is not."""
    for part in manifest.parts:
        if parts.get(part.name) != part:
            raise CorruptPart(f"{part.name} did not arrive as it was sent")
    for image in manifest.images:
        path = images / ASIDE.get(image.name, image.name)
        if not path.is_file() or path.stat().st_size != image.size:
            raise CorruptPart(f"the image {image.name} did not arrive whole")


def prove(manifest: Manifest, images: Path, result: RestoreResult) -> None:
    """A cold start must never pass for a restore (rule 5); raises RestoreFailed.

    The proof is CRIU's own: its action script has named the first process, and each task, as many as were dumped,
    is in CRIU's hand. (Its statistics are written when the tasks run, too late for this.) The source may have seen
    more: what `docker exec` or a probe has put into the container is in no dump.
    """
    dumped = tasks_in(images)
    tasks = proc.own(proc.tasks(freezer.cgroup_of(result.pid).tasks()), result.pid)
    if len(tasks) != dumped or dumped > manifest.tasks:
        raise RestoreFailed(f"{len(tasks)} of {dumped} tasks were restored; the source has {manifest.tasks}")
    free = [task.pid for task in tasks if not task.tracer and task.state != "Z"]
    if free:
        raise RestoreFailed(f"{len(free)} of {len(tasks)} restored tasks are not held")
