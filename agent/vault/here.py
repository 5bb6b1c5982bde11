"""This host as a target, without a link in between."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from agent.doors.peer_server import Stream
from agent.migration.targets import Targets
from protocol.peer import Answer, Created, Manifest, Offer, Prepared, Running, SentPart, Staged


class Here:
    """What a peer's client would be; the peer is this host."""

    def __init__(self, targets: Targets, name: str) -> None:
        self._targets = targets
        self.name = name

    async def offer(self, offer: Offer) -> Answer:
        return await self._targets.offer(self.name, offer)

    async def send_layers(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await _read("layers", chunks, partial(self._targets.layers, self.name, migration))

    async def create(self, migration: str) -> Created:
        return await self._targets.create(self.name, migration)

    async def send_log(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await _read("log", chunks, partial(self._targets.log, self.name, migration))

    async def stage(self, migration: str) -> Staged:
        return await self._targets.stage(self.name, migration)

    async def send_files(self, migration: str, name: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await _read(name, chunks, partial(self._targets.files, self.name, migration, name))

    async def send_printed(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await _read("printed", chunks, partial(self._targets.printed, self.name, migration))

    async def send_images(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await _read("images", chunks, partial(self._targets.images, self.name, migration))

    async def prepare(self, migration: str, manifest: Manifest) -> Prepared:
        return await self._targets.prepare(self.name, migration, manifest)

    async def go(self, migration: str) -> Running:
        return await self._targets.go(self.name, migration)

    async def alive(self, migration: str) -> None:
        await self._targets.alive(self.name, migration)

    async def forget(self, migration: str) -> None:
        await self._targets.forget(self.name, migration)

    async def discard(self, migration: str) -> None:
        await self._targets.discard(self.name, migration)


async def _read(name: str, chunks: AsyncIterator[bytes], reader: Callable[[Stream], Awaitable[None]]) -> SentPart:
    """What a request's body would be, given to whoever reads it."""
    stream = Stream(chunks)
    await reader(stream)
    return stream.part(name)
