"""Cold: freeze, dump, stream while dumping, restore. Nothing of the memory travels before the freeze.

CRIU writes its images into a bounded tmpfs of the source; they are read while they grow, and what was sent is punched
out again, so the source needs neither disk nor the memory twice as long as the link keeps up.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.errors import CommandFailed, DumpFailed
from agent.base.tasks import both
from agent.checkpoint import criu, logs, segments
from agent.doors.handover import mount_tmpfs, unmount
from agent.doors.peer_client import PeerClient
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from protocol.peer import FileHash, SentPart

DUMPS = Path("/run/transship/dump")
ROOM_FACTOR = 1.25
ROOM = 64 << 20


class Cold:
    """See the module."""

    name = "cold"

    async def copy_while_running(self, run: Run, subject: Subject, host: Host, peer: PeerClient) -> None:
        """Only the place for the images, so that the freeze waits for nothing but the dump."""
        folder = DUMPS / run.id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        DUMPS.chmod(0o700)
        (folder / "work").mkdir(exist_ok=True, mode=0o700)
        await mount_tmpfs(host.shell, folder / "images", int(subject.memory_bytes * ROOM_FACTOR) + ROOM)
        options = criu.CriuOptions(tcp=subject.offer.tcp, watched=subject.watched)
        (folder / "criu.conf").write_text(options.for_dump())
        criu.make_shadow_root(subject.id, folder / "criu.conf", folder / "root")

    async def dump_and_send(
        self, run: Run, subject: Subject, host: Host, peer: PeerClient
    ) -> tuple[SentPart, tuple[FileHash, ...]]:
        images = DUMPS / run.id / "images"
        finished = asyncio.Event()
        stream = self._counted(run, segments.follow(images, finished, lambda name, count: None))
        began = time.monotonic()
        part, _ = await both(peer.send_images(run.id, stream), self._dump(run, subject, host, finished))
        run.part_done(part.name, part.bytes, began, frozen=True)
        return part, tuple(
            FileHash(name=path.name, size=path.stat().st_size) for path in sorted(images.iterdir()) if path.is_file()
        )

    async def _counted(self, run: Run, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        run.sending("images")
        async for chunk in chunks:
            yield chunk
            run.sent(len(chunk))

    async def _dump(self, run: Run, subject: Subject, host: Host, finished: asyncio.Event) -> None:
        folder = DUMPS / run.id
        began = time.monotonic()
        command = criu.dump_command(folder / "root", folder / "images", folder / "work", subject.id)
        try:
            # CRIU killed in the middle leaves its parasite in the tasks: whatever happens, its end is waited for. Not
            # by an agent that crashes: it goes on then, and recovery finds it by its folder.
            await host.shell.run(*command, label="dump", timeout=host.settings.deadlines.dump, killable=False)
        except CommandFailed as error:
            raise self._failure(run, error) from error
        run.figures["dump_ms"] = (time.monotonic() - began) * 1000
        finished.set()

    def _failure(self, run: Run, error: CommandFailed) -> DumpFailed:
        log = DUMPS / run.id / "work" / "dump.log"
        kept = logs.keep(log, f"{run.id}-dump.log")
        return DumpFailed(
            "CRIU could not dump the container",
            hint=f"its whole log is at {kept} on the source" if kept else "",
            detail=logs.digest(log) or error.detail,
        )

    async def release(self, run: Run, host: Host) -> None:
        folder = DUMPS / run.id
        await unmount(host.shell, folder / "images")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
