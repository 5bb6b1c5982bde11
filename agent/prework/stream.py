"""Packing and unpacking as asyncio byte streams; both ends hash and count what goes by."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent.prework.ids import IdMap
from agent.prework.pack import Packed, pack
from agent.prework.pipe import Pipe, PipeClosedError, Worker
from agent.prework.tar import Limits
from agent.prework.tree import Index, Source
from agent.prework.unpack import Summary, apply


@dataclass(frozen=True, slots=True)
class Checked:
    """What went through a stream: both ends must come to the same."""

    sha256: str
    bytes: int


class _Check:
    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._bytes = 0

    def update(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._bytes += len(chunk)

    def sum(self) -> Checked:
        return Checked(self._digest.hexdigest(), self._bytes)


class PackedStream:
    """The chunks of a pass; after the last one, `packed` and `checked` say what they were."""

    def __init__(self, pipe: Pipe, worker: Worker[Packed], check: _Check) -> None:
        self._pipe = pipe
        self._worker = worker
        self._check = check
        self.packed: Packed | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._pipe.get()
        if chunk is None:
            self.packed = await self._worker.result()
            raise StopAsyncIteration
        return chunk

    @property
    def checked(self) -> Checked:
        assert self.packed is not None, "the stream has not come to its end"
        return self._check.sum()


@asynccontextmanager
async def packed(
    source: Source, previous: Index | None = None, *, live: bool | None = None
) -> AsyncIterator[PackedStream]:
    """One pass over a tree, as a stream for `async for`. Left early, it ends the thread and waits for that."""
    pipe, check = Pipe(), _Check()

    def write(chunk: bytes) -> None:
        check.update(chunk)
        pipe.put_blocking(chunk)

    def work() -> Packed:
        try:
            return pack(source, write, previous, live=live, check=pipe.check_blocking)
        finally:
            pipe.end()

    worker = Worker(f"pack {source.root}", work)
    try:
        yield PackedStream(pipe, worker, check)
    finally:
        pipe.close()
        await worker.ended()


async def unpacked(
    chunks: AsyncIterable[bytes],
    root: str | int,
    *,
    ids: IdMap | None = None,
    devices: bool = False,
    limits: Limits | None = None,
) -> tuple[Summary, Checked]:
    """Apply a stream to a tree. An error of the tree ends it at once, even while the stream is silent."""
    pipe, check = Pipe(), _Check()

    def read(_: int) -> bytes:
        chunk = pipe.get_blocking()
        check.update(chunk)
        return chunk

    worker = Worker(
        f"unpack {root}",
        lambda: apply(root, read, ids=ids, devices=devices, limits=limits, check=pipe.check_blocking),
    )
    feeding = asyncio.create_task(_feed(chunks, pipe), name=f"feed {root}")
    either: list[asyncio.Future[Any]] = [feeding, worker.done]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        return await worker.result(), check.sum()
    finally:
        pipe.close()
        feeding.cancel()
        await worker.ended()
        await asyncio.wait([feeding])


async def _feed(chunks: AsyncIterable[bytes], pipe: Pipe) -> None:
    async for chunk in chunks:
        if chunk:  # an empty one would look like the end
            try:
                await pipe.put(chunk)
            except PipeClosedError:
                return  # the thread has failed, and its result says why
    pipe.end()
