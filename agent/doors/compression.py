"""What goes over a peer link, compressed by zstd where the link is the slower of the two.

Each frame holds at most `FRAME` bytes and says so itself, behind its length: a receiver never decompresses more than
that at once, whatever comes. Hashes and sizes of parts are those of what is in it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent.base import zstd
from agent.base.errors import CorruptPart

FRAME = 1 << 20
LENGTH = 4
LEVEL = 1
"""The fastest that is worth it: what the processor can't do at the link's speed is not compressed at all."""
ENCODING = "X-Transship-Encoding"
ZSTD = "zstd"


@dataclass(slots=True)
class Compressed:
    """What has gone through a compressor."""

    raw: int = 0
    compressed: int = 0


@dataclass(frozen=True, slots=True)
class Tried:
    """How a sample was compressed."""

    rate: float
    """Bytes a second that one processor takes in."""
    ratio: float
    """How many bytes become one."""


async def compressed(chunks: AsyncIterator[bytes], count: Compressed) -> AsyncIterator[bytes]:
    """The same bytes in frames; whatever is too little for one waits for more, or for the end."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= FRAME:
            yield await _frame(bytes(waiting[:FRAME]), count)
            del waiting[:FRAME]
    if waiting:
        yield await _frame(bytes(waiting), count)


async def _frame(data: bytes, count: Compressed) -> bytes:
    frame = await asyncio.to_thread(_compress, data)
    count.raw += len(data)
    count.compressed += len(frame) + LENGTH
    return len(frame).to_bytes(LENGTH, "big") + frame


def _compress(data: bytes) -> bytes:
    return zstd.frame(data, LEVEL)


async def decompressed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What was in the frames.

    Raises:
        CorruptPart: it is not what `compressed` makes, or was cut off.

    """
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while (frame := _take_frame(waiting)) is not None:
            yield await asyncio.to_thread(_decompress, frame)
    if waiting:
        raise CorruptPart("the compressed stream was cut off")


def _take_frame(waiting: bytearray) -> bytes | None:
    """The first one, taken off; None if it is not whole yet."""
    if len(waiting) < LENGTH:
        return None
    end = LENGTH + int.from_bytes(waiting[:LENGTH], "big")
    if end > LENGTH + 2 * FRAME:  # zstd adds next to nothing to what it can not compress
        raise CorruptPart("the compressed stream has a frame that is too long")
    if len(waiting) < end:
        return None
    frame = bytes(waiting[LENGTH:end])
    del waiting[:end]
    return frame


def _decompress(frame: bytes) -> bytes:
    try:
        return zstd.unframe(frame, FRAME)
    except zstd.ZstdError as error:
        raise CorruptPart(f"the compressed stream is broken: {error}") from None


def try_out(sample: bytes) -> Tried:
    """Compress a sample; blocks for some milliseconds a MiB."""
    began, size = time.monotonic(), 0
    for at in range(0, len(sample), FRAME):
        size += len(_compress(sample[at : at + FRAME]))
    return Tried(len(sample) / max(time.monotonic() - began, 1e-6), len(sample) / max(size, 1))
