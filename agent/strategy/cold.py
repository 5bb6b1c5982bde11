"""Cold: freeze, dump, stream while dumping, restore. Nothing of the memory travels before the freeze.

CRIU writes its images into a bounded tmpfs of the source; they are read while they grow, and what was sent is punched
out again, so the source needs neither disk nor the memory twice as long as the link keeps up.
"""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.errors import CorruptPart
from agent.base.shell import Shell
from agent.base.tasks import both
from agent.checkpoint import segments
from agent.strategy import FilesAgain, Memory, Progress
from agent.strategy.dump import Dump
from protocol.peer import ImageFile, SentPart

DESCRIPTORS = "descriptors.json"
"""runc writes it before it calls CRIU."""


class Cold:
    """See the module."""

    name = "cold"
    lazy = False

    def __init__(self) -> None:
        self._dump: Dump | None = None

    def _dump_of(self, shell: Shell, migration: str) -> Dump:
        """That of this move; a restarted agent finds what there is of it by its folder."""
        if self._dump is None:
            self._dump = Dump(shell, migration)
        return self._dump

    @property
    def sent(self) -> tuple[SentPart, ...]:
        return ()

    async def copy_while_running(self, memory: Memory, again: FilesAgain) -> None:
        """Only the place for the images, and all of the dump that needs no frozen tasks."""
        dump = self._dump_of(memory.shell, memory.migration)
        await dump.make_ready(memory.container_id, memory.resident_bytes, memory.options)
        await dump.start(memory.container_id, "the source")
        await self._send_ahead(memory, dump)

    async def _send_ahead(self, memory: Memory, dump: Dump) -> None:
        """What the target's runc wants to know before it calls CRIU. An older agent takes it with the images only."""

        async def content() -> AsyncIterator[bytes]:
            yield (dump.images / DESCRIPTORS).read_bytes()

        with contextlib.suppress(CorruptPart):
            await memory.peer.send_files(memory.migration, DESCRIPTORS, content())

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[ImageFile, ...]]:
        dump = self._dump_of(memory.shell, memory.migration)
        stream = self._counted(memory.progress, segments.follow(dump.images, memory.written))
        began = time.monotonic()
        part, _ = await both(memory.peer.send_images(memory.migration, stream), self._take(memory, dump))
        memory.progress.part_done(part.name, part.bytes, began, frozen=True)
        return part, self._described(dump.images)

    def _described(self, images: Path) -> tuple[ImageFile, ...]:
        return tuple(
            ImageFile(name=path.name, size=path.stat().st_size) for path in sorted(images.iterdir()) if path.is_file()
        )

    async def _counted(self, progress: Progress, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        progress.sending("images")
        async for chunk in chunks:
            yield chunk
            progress.sent(len(chunk))

    async def carry(self, memory: Memory) -> None:
        """Nothing: all of it is there when the container runs."""

    async def serves(self, migration: str) -> bool:
        return False

    async def fails_to_serve(self, migration: str) -> None:
        """Never: nothing is needed any more."""

    async def stop_serving(self, shell: Shell, migration: str) -> None:
        """CRIU leaves from before the gate; what has passed it ends with the dump."""
        await self._dump_of(shell, migration).turn_away()

    async def _take(self, memory: Memory, dump: Dump) -> None:
        memory.progress.figures["dump_ms"] = await dump.images_written(memory.dump_seconds, "the source")
        memory.written.set()

    async def release(self, shell: Shell, migration: str) -> None:
        await self._dump_of(shell, migration).release()
