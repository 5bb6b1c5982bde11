"""What goes over a peer link, packed by zstd where the link is the slower of the two.

Each frame holds at most `FRAME` bytes and says so itself, behind its length: a receiver never unpacks more than that at
once, whatever comes. Hashes and sizes of parts are those of what is in it.
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
"""The fastest that is worth it: what the processor can't do at the link's speed is not packed at all."""
ENCODING = "X-Transship-Encoding"
ZSTD = "zstd"


@dataclass(slots=True)
class Packed:
    """What has gone through a packer."""

    raw: int = 0
    packed: int = 0


@dataclass(frozen=True, slots=True)
class Tried:
    """How a sample was packed."""

    rate: float
    """Bytes a second that one processor takes in."""
    ratio: float
    """How many bytes become one."""


async def packed(chunks: AsyncIterator[bytes], count: Packed) -> AsyncIterator[bytes]:
    """The same bytes in frames; whatever is too little for one waits for more, or for the end."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= FRAME:
            yield await _frame(bytes(waiting[:FRAME]), count)
            del waiting[:FRAME]
    if waiting:
        yield await _frame(bytes(waiting), count)


async def _frame(data: bytes, count: Packed) -> bytes:
    frame = await asyncio.to_thread(_pack, data)
    count.raw += len(data)
    count.packed += len(frame) + LENGTH
    return len(frame).to_bytes(LENGTH, "big") + frame


def _pack(data: bytes) -> bytes:
    return zstd.frame(data, LEVEL)


async def unpacked(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What was in the frames.

    Raises:
        CorruptPart: it is not what `packed` makes, or was cut off.

    """
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while (frame := _take_frame(waiting)) is not None:
            yield await asyncio.to_thread(_unpack, frame)
    if waiting:
        raise CorruptPart("the packed stream was cut off")


def _take_frame(waiting: bytearray) -> bytes | None:
    """The first one, taken off; None if it is not whole yet."""
    if len(waiting) < LENGTH:
        return None
    end = LENGTH + int.from_bytes(waiting[:LENGTH], "big")
    if end > LENGTH + 2 * FRAME:  # zstd adds next to nothing to what it can't pack
        raise CorruptPart("the packed stream has a frame that is too long")
    if len(waiting) < end:
        return None
    frame = bytes(waiting[LENGTH:end])
    del waiting[:end]
    return frame


def _unpack(frame: bytes) -> bytes:
    try:
        return zstd.unframe(frame, FRAME)
    except zstd.ZstdError as error:
        raise CorruptPart(f"the packed stream is broken: {error}") from None


def try_out(sample: bytes) -> Tried:
    """Pack a sample; blocks for some milliseconds a MiB."""
    began, size = time.monotonic(), 0
    for at in range(0, len(sample), FRAME):
        size += len(_pack(sample[at : at + FRAME]))
    return Tried(len(sample) / max(time.monotonic() - began, 1e-6), len(sample) / max(size, 1))
