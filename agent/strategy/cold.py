"""Cold: freeze, dump, stream while dumping, restore. Nothing of the memory travels before the freeze.

CRIU writes its images into a bounded tmpfs of the source; they are read while they grow, and what was sent is punched
out again, so the source needs neither disk nor the memory twice as long as the link keeps up.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.shell import Shell
from agent.base.tasks import both
from agent.checkpoint import segments
from agent.strategy import Memory, Progress
from agent.strategy.dump import Dump
from protocol.peer import FileHash, SentPart


class Cold:
    """See the module."""

    name = "cold"

    async def copy_while_running(self, memory: Memory) -> None:
        """Only the place for the images."""
        dump = Dump(memory.shell, memory.migration)
        await dump.make_ready(memory.container_id, memory.resident_bytes, memory.options)

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[FileHash, ...]]:
        dump = Dump(memory.shell, memory.migration)
        finished = asyncio.Event()
        stream = self._counted(memory.progress, segments.follow(dump.images, finished))
        began = time.monotonic()
        part, _ = await both(memory.peer.send_images(memory.migration, stream), self._dump(memory, dump, finished))
        memory.progress.part_done(part.name, part.bytes, began, frozen=True)
        return part, self._described(dump.images)

    def _described(self, images: Path) -> tuple[FileHash, ...]:
        return tuple(
            FileHash(name=path.name, size=path.stat().st_size) for path in sorted(images.iterdir()) if path.is_file()
        )

    async def _counted(self, progress: Progress, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        progress.sending("images")
        async for chunk in chunks:
            yield chunk
            progress.sent(len(chunk))

    async def carry(self, memory: Memory) -> None:
        """Nothing: all of it is there when the container runs."""

    def serves(self, migration: str) -> bool:
        return False

    async def stop_serving(self, shell: Shell, migration: str) -> None:
        """CRIU has ended when the dump has."""

    async def _dump(self, memory: Memory, dump: Dump, finished: asyncio.Event) -> None:
        memory.progress.figures["dump_ms"] = await dump.take(memory.container_id, memory.dump_seconds, "the source")
        finished.set()

    async def release(self, shell: Shell, migration: str) -> None:
        await Dump(shell, migration).release()
