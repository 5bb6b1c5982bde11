"""Cold: freeze, dump, stream while dumping, restore. Nothing of the memory travels before the freeze.

CRIU writes its images into a bounded tmpfs of the source; they are read while they grow, and what was sent is punched
out again, so the source needs neither disk nor the memory twice as long as the link keeps up.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.errors import CommandFailed
from agent.base.shell import Shell
from agent.base.tasks import both
from agent.checkpoint import criu, segments
from agent.checkpoint.diagnosis import dump_failed
from agent.doors.handover import mount_tmpfs, unmount
from agent.strategy import Memory, Progress
from protocol.peer import FileHash, SentPart

DUMPS = Path("/run/transship/dump")
ROOM_FACTOR = 1.25
ROOM = 64 << 20


class Cold:
    """See the module."""

    name = "cold"

    async def copy_while_running(self, memory: Memory) -> None:
        """Only the place for the images, so that the freeze waits for nothing but the dump."""
        folder = DUMPS / memory.migration
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        DUMPS.chmod(0o700)
        (folder / "work").mkdir(exist_ok=True, mode=0o700)
        await mount_tmpfs(memory.shell, folder / "images", int(memory.resident_bytes * ROOM_FACTOR) + ROOM)
        (folder / "criu.conf").write_text(memory.options.for_dump())
        criu.make_shadow_root(memory.container_id, folder / "criu.conf", folder / "root")

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[FileHash, ...]]:
        images = DUMPS / memory.migration / "images"
        finished = asyncio.Event()
        stream = self._counted(memory.progress, segments.follow(images, finished))
        began = time.monotonic()
        part, _ = await both(memory.peer.send_images(memory.migration, stream), self._dump(memory, finished))
        memory.progress.part_done(part.name, part.bytes, began, frozen=True)
        return part, tuple(
            FileHash(name=path.name, size=path.stat().st_size) for path in sorted(images.iterdir()) if path.is_file()
        )

    async def _counted(self, progress: Progress, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        progress.sending("images")
        async for chunk in chunks:
            yield chunk
            progress.sent(len(chunk))

    async def _dump(self, memory: Memory, finished: asyncio.Event) -> None:
        folder = DUMPS / memory.migration
        began = time.monotonic()
        command = criu.dump_command(folder / "root", folder / "images", folder / "work", memory.container_id)
        try:
            # CRIU killed in the middle leaves its parasite in the tasks: whatever happens, its end is waited for. Not
            # by an agent that crashes: it goes on then, and recovery finds it by its folder.
            await memory.shell.run(*command, label="dump", timeout=memory.dump_seconds, killable=False)
        except CommandFailed as error:
            log = folder / "work" / "dump.log"
            raise dump_failed(log, f"{memory.migration}-dump.log", "the source", error) from error
        memory.progress.figures["dump_ms"] = (time.monotonic() - began) * 1000
        finished.set()

    async def release(self, shell: Shell, migration: str) -> None:
        folder = DUMPS / migration
        await unmount(shell, folder / "images")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
