"""Whether what a move sends is compressed: by how fast the link was, and how well a sample of the memory compresses."""

import asyncio
from dataclasses import dataclass

from agent.checkpoint import sample
from agent.doors.compression import Tried, try_out
from protocol.commands import Compress, Migrate

GAIN = 1.2
"""By so much it has to be faster: the processor has other things to do in a blackout."""
FAST = 250.0 * (1 << 20)
"""Over a link that carries more bytes a second, two gigabit, nothing is compressed: that would save milliseconds, and
CRIU and TLS need the processor then.
"""
LEAST = 256 << 10
"""Less of a sample says nothing."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided."""

    zstd: bool = False
    rate: float = 0.0
    """Bytes of the container a second that get across with it in the blackout, in which no limit holds."""
    ratio: float = 1.0
    """Bytes of the container to one on the wire."""
    reason: str = ""


async def choose(request: Migrate, link_rate: float, pids: list[int]) -> Chosen:
    """Try a sample of the memory, where that can change anything."""
    rate = min(link_rate, request.bandwidth or link_rate)
    if request.compress is Compress.AUTO and rate > FAST:
        return Chosen(False, link_rate, 1.0, f"not compressed: the link carries {rate / (1 << 20):.0f} MiB/s")
    if request.compress is Compress.NONE:
        return Chosen(False, link_rate, 1.0, "not compressed, as asked")
    taken = await asyncio.to_thread(sample.memory, pids)
    tried = await asyncio.to_thread(try_out, taken) if len(taken) >= LEAST else Tried(0.0, 1.0)
    compressed_rate, unlimited = (min(tried.rate, each * tried.ratio) for each in (rate, link_rate))
    figures = f"a sample compresses {tried.ratio:.1f} to 1 at {tried.rate / (1 << 20):.0f} MiB/s"
    if request.compress is Compress.ZSTD:
        return Chosen(True, unlimited or link_rate, tried.ratio, f"zstd, as asked: {figures}")
    if compressed_rate > rate * GAIN:
        return Chosen(True, unlimited, tried.ratio, f"zstd: {figures}")
    return Chosen(
        False, link_rate, 1.0, f"not compressed: {figures}" if tried.rate else "not compressed: too little memory"
    )
