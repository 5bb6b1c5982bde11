"""The passes over a container's file trees and logs: the first while it runs, the delta after the freeze."""

import array
import asyncio
import contextlib
import fcntl
import os
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.tasks import all_of
from agent.checkpoint.segments import END, segments_of
from agent.doors.peer_client import PeerClient
from agent.migration.run import Run
from agent.migration.subject import Subject, Tree
from agent.prework.stream import Packing
from agent.prework.tree import Index
from protocol.peer import SentPart
from protocol.status import Part

DRAIN_SECONDS = 0.25
"""For dockerd to take what the container has printed before the freeze out of its pipes; it takes some milliseconds."""


class FilePasses:
    """What has been sent of each tree and log so far."""

    def __init__(self, run: Run, subject: Subject, peer: PeerClient) -> None:
        self._run = run
        self._subject = subject
        self._peer = peer
        self._indexes: dict[str, Index] = {}
        self._logs: dict[str, tuple[int, int]] = {}
        """Inode and bytes sent, by name on the wire."""
        self._passes = 0

    async def first(self) -> None:
        """Send all of it while the container runs; what changes meanwhile comes with the delta."""
        for tree in self._subject.trees:
            await self._send_tree(tree, frozen=False)
        await self._send_logs(frozen=False)
        self._passes += 1

    async def delta(self) -> list[SentPart]:
        """Send what has changed since; the container is frozen, so this is the end of it."""
        trees = [self._send_tree(tree, frozen=True) for tree in self._subject.trees]
        return await all_of([*trees, self._send_logs(frozen=True)])

    async def _send_tree(self, tree: Tree, *, frozen: bool) -> SentPart:
        began = time.monotonic()
        packing = Packing(tree.source, self._indexes.get(tree.name), live=not frozen)
        name = f"{tree.name}:{self._passes}"
        part = await self._peer.send_files(self._run.id, name, self._counted(name, aiter(packing)))
        packed = packing.result()
        self._indexes[tree.name] = packed.index
        self._run.notes += [note for note in packed.notes if note not in self._run.notes]
        self._done(part, began, frozen)
        return part

    async def _send_logs(self, *, frozen: bool) -> SentPart:
        if frozen:
            await drained(self._subject.pid)
        began = time.monotonic()
        name = f"log:{self._passes}"
        part = await self._peer.send_files(self._run.id, name, self._counted(name, self._log_segments()))
        self._done(part, began, frozen)
        return part

    def _done(self, part: SentPart, began: float, frozen: bool) -> None:
        ms = round((time.monotonic() - began) * 1000, 3)
        self._run.parts.append(Part(name=part.name, bytes=part.bytes, frozen=frozen, ms=ms))

    async def _log_segments(self) -> AsyncIterator[bytes]:
        for name, path in self._subject.logs:
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                inode, sent = self._logs.get(name, (0, 0))
                if inode != found.st_ino or sent > found.st_size:
                    sent = 0  # rotated since: another file has the name, and is sent whole
                for chunk in segments_of(path, name, sent, found.st_size):
                    yield chunk
                self._logs[name] = (found.st_ino, found.st_size)
        yield END

    async def _counted(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._run.sending(name)
        async for chunk in chunks:
            yield chunk
            self._run.sent(len(chunk))


async def drained(pid: int) -> None:
    """Wait, at most `DRAIN_SECONDS`, until what the frozen container has printed is no longer in its pipes.

    The pipes are the shim's: what is in them is not in CRIU's images, and would come out at the source only.
    """
    end = time.monotonic() + DRAIN_SECONDS
    pipes = [fd for number in (1, 2) if (fd := _open_pipe(Path(f"/proc/{pid}/fd/{number}"))) >= 0]
    try:
        while any(_waiting(fd) for fd in pipes) and time.monotonic() < end:
            await asyncio.sleep(0.001)
    finally:
        for fd in pipes:
            os.close(fd)


def _open_pipe(path: Path) -> int:
    with contextlib.suppress(OSError):
        if path.readlink().name.startswith("pipe:"):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return -1


def _waiting(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
