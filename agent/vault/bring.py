"""The story of a restore: an archive in the place of a source, read once from its first member to its last.

The target is this host or another one, and is asked for the same steps as in any move: nothing is restored before all
that the archive has was compared with its hashes, the copy is proved before it runs, and until it runs all of it is
taken back on any error.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Protocol

from agent.archive import layout
from agent.archive.reader import ArchiveReader
from agent.base.errors import AgentError, CorruptPart, InDoubt, Refused, TransferFailed
from agent.base.tasks import beside
from agent.base.undo import Undo
from agent.checkpoint.segments import END, SEGMENT, header, padding
from protocol.errors import ErrorCode
from protocol.peer import Answer, Created, ImageFile, Manifest, Offer, Prepared, Running, SentPart, Staged

log = logging.getLogger("agent.restore")

ALIVE_SECONDS = 5.0
GO_ATTEMPTS = 5
GO_PAUSE_SECONDS = 1.0
LOG_NAMES = {layout.LOG: "json.log"}


class Receiver(Protocol):
    """A target: another host's agent (doors/peer_client.py), or this host's own (vault.Here)."""

    name: str

    async def offer(self, offer: Offer) -> Answer: ...
    async def send_layers(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart: ...
    async def create(self, migration: str) -> Created: ...
    async def send_log(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart: ...
    async def stage(self, migration: str) -> Staged: ...
    async def send_files(self, migration: str, name: str, chunks: AsyncIterator[bytes]) -> SentPart: ...
    async def send_printed(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart: ...
    async def send_images(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart: ...
    async def prepare(self, migration: str, manifest: Manifest) -> Prepared: ...
    async def go(self, migration: str) -> Running: ...
    async def alive(self, migration: str) -> None: ...
    async def forget(self, migration: str) -> None: ...
    async def discard(self, migration: str) -> None: ...


async def bring(
    reader: ArchiveReader, offer: Offer, volumes: dict[str, str], target: Receiver, notes: list[str]
) -> None:
    """Restore an archive whose manifest has been read, up to the proof of it; `volumes` names those in it anew."""
    answer = await target.offer(offer)
    notes += answer.notes
    async with Undo() as undo, beside(_alive(target, offer.migration)):
        undo.first("make the target forget it", _discard, target, offer.migration)
        feed = _Feed(reader, offer, target)
        await feed.image(answer)
        notes += (await target.create(offer.migration)).notes
        await feed.log()
        await target.stage(offer.migration)
        await feed.init(answer)
        await feed.trees(volumes)
        await feed.printed()
        manifest = await feed.images()
        await target.prepare(offer.migration, manifest)  # restored there, stopped, locked, proved
        undo.detach()


async def let_run(target: Receiver, offer: Offer) -> tuple[str, ...]:
    """Let what was restored run, which is the end of the restore; the target's notes."""
    running = await _go(target, offer)
    with contextlib.suppress(AgentError):  # it settles by itself; this only saves it a question
        await target.forget(offer.migration)
    return running.notes


async def _go(target: Receiver, offer: Offer) -> Running:
    """Nothing is lost by asking again: the archive is still there, and a target lets its copy run once."""
    for attempt in range(GO_ATTEMPTS):
        try:
            return await target.go(offer.migration)
        except TransferFailed as error:
            log.warning("%s: %s has not confirmed that it runs: %s", offer.migration, target.name, error)
            if attempt + 1 < GO_ATTEMPTS:
                await asyncio.sleep(GO_PAUSE_SECONDS)
    raise InDoubt(
        f"{target.name} has not confirmed that {offer.container} runs",
        hint=f"`transship ps --host {target.name}` shows whether it does; the archive can be restored again",
    )


async def _discard(target: Receiver, migration: str) -> None:
    try:
        await target.discard(migration)
    except AgentError as error:
        log.warning("%s: %s could not be told to discard, and will find out: %s", migration, target.name, error)


async def _alive(target: Receiver, migration: str) -> None:
    while True:
        await asyncio.sleep(ALIVE_SECONDS)
        with contextlib.suppress(AgentError):  # what is wrong with it shows where something is sent
            await target.alive(migration)


class _Feed:
    """Gives the members of an archive to a target, in the order in which both have them."""

    def __init__(self, reader: ArchiveReader, offer: Offer, target: Receiver) -> None:
        self._reader = reader
        self._offer = offer
        self._id = offer.migration
        self._target = target
        self._parts: list[SentPart] = []
        self._files: list[ImageFile] = []

    async def _next(self, prefix: str) -> str | None:
        """Go on to the next member if its name begins so; what nobody needs is read over."""
        while (member := await self._reader.peek()) is not None:
            if member.name.startswith(prefix):
                await self._reader.next()
                return member.name
            if member.name not in SKIPPED:
                return None
            await self._reader.next()
        return None

    async def image(self, answer: Answer) -> None:
        """The image, where the target lacks it."""
        image = self._offer.image
        pieces = self._pieces(layout.LAYERS)
        if not answer.image_wanted:
            async for _ in pieces:
                pass
            return
        first = await anext(pieces, None)
        if first is None:
            raise Refused(
                ErrorCode.NOT_MIGRATABLE,
                f"{self._target.name} has not the image {image.name}, and it is not in the archive",
                hint=f"`docker pull {image.name}` there, or take the checkpoint --with-image",
            )

        async def all_pieces() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        await self._target.send_layers(self._id, all_pieces())

    async def _pieces(self, prefix: str) -> AsyncIterator[bytes]:
        while await self._next(prefix) is not None:
            async for chunk in self._reader.content():
                yield chunk

    async def log(self) -> None:
        self._parts.append(await self._target.send_log(self._id, self._log_segments()))

    async def _log_segments(self) -> AsyncIterator[bytes]:
        while (name := await self._next(layout.LOG)) or (name := await self._next(layout.LOGS)):
            async for chunk in self._segments(LOG_NAMES.get(name, name.removeprefix(layout.LOGS))):
                yield chunk
        yield END

    async def _segments(self, name: str) -> AsyncIterator[bytes]:
        offset = 0
        async for chunk in self._reader.content():
            for at in range(0, len(chunk), SEGMENT):
                piece = chunk[at : at + SEGMENT]
                yield header(name, offset, len(piece)) + piece + padding(len(piece))
                offset += len(piece)

    async def init(self, answer: Answer) -> None:
        if await self._next(layout.INIT) and answer.init_wanted:
            await self._target.send_files(self._id, "init", self._reader.content())

    async def trees(self, volumes: dict[str, str]) -> None:
        """Volumes and the writable layer, each as one pass."""
        while (member := await self._next(layout.VOLUMES)) is not None:
            name = member.removeprefix(layout.VOLUMES).removesuffix(".tar")
            if name not in volumes:
                raise CorruptPart(f"the archive has the content of a volume that the container has not: {name!r}")
            await self._tree(f"volume:{volumes[name]}:0")
        if await self._next(layout.ROOT) != layout.ROOT:
            raise CorruptPart(f"{layout.ROOT} is missing from the archive")
        await self._tree("root:0")

    async def _tree(self, part: str) -> None:
        self._parts.append(await self._target.send_files(self._id, part, self._reader.content()))

    async def printed(self) -> None:
        if await self._next(layout.PRINTED):
            self._parts.append(await self._target.send_printed(self._id, self._reader.content()))

    async def images(self) -> Manifest:
        """CRIU's images; then the rest of the archive, which has to be as it was written."""
        self._parts.append(await self._target.send_images(self._id, self._image_segments()))
        if await self._next(layout.TAKEN) is None:
            raise CorruptPart(f"{layout.TAKEN} is missing from the archive, or its members are not in their order")
        taken = await self._reader.model(layout.Taken)
        await self._reader.finish()
        return Manifest(parts=tuple(self._parts), images=tuple(self._files), tasks=taken.tasks)

    async def _image_segments(self) -> AsyncIterator[bytes]:
        while (member := await self._next(layout.IMAGES)) is not None:
            name = member.removeprefix(layout.IMAGES)
            if not layout.IMAGE_NAME.fullmatch(name):
                raise CorruptPart(f"the archive has an image of a name that CRIU does not use: {name[:200]!r}")
            async for chunk in self._segments(name):
                yield chunk
            self._files.append(ImageFile(name=name, size=self._reader.hash_of(member).bytes))
        yield END


SKIPPED = frozenset(
    {
        layout.CONFIG,
        layout.SPEC,
        layout.NETWORKS,
        layout.BINDS,
        layout.DELETED,
        layout.STATS,
        layout.DUMP_LOG,
    }
)
"""What is there for other readers."""
