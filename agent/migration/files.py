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

from agent.base.errors import StepFailed
from agent.base.tasks import all_of
from agent.checkpoint.segments import END, segments_of
from agent.doors.peer_client import PeerClient
from agent.migration.run import Run
from agent.migration.subject import Subject, Tree
from agent.prework import container_log
from agent.prework.stream import packed
from agent.prework.tree import Index
from protocol.peer import SentPart

DRAIN_SECONDS = 0.25
"""For dockerd to take what the container has printed before the freeze out of its pipes; it takes some milliseconds."""


class FilePasses:
    """What has been sent of each tree and log so far."""

    def __init__(self, run: Run, subject: Subject, peer: PeerClient) -> None:
        self._run = run
        self._subject = subject
        self._peer = peer
        self._indexes: dict[str, Index] = {}
        self._logs = container_log.places(subject.data_root, subject.id)
        self._mark: container_log.Mark | None = None
        self._passes = 0

    async def log(self) -> None:
        """Send the log files as they are; before the target's start, since dockerd notes their size there."""
        self._mark = container_log.mark(self._logs)
        began = time.monotonic()
        part = await self._peer.send_log(self._run.id, self._counted("log", self._log_segments()))
        self._run.part_done(part.name, part.bytes, began, frozen=False)
        now = container_log.mark(self._logs)
        if now is not None and (self._mark is None or now.inode != self._mark.inode):
            raise StepFailed("the container's log was rotated while it was being sent", hint="try again")

    async def first(self) -> None:
        """Send all of the trees while the container runs; what changes meanwhile comes with the delta."""
        for tree in self._subject.trees:
            await self._send_tree(tree, frozen=False)
        self._passes += 1

    async def delta(self) -> list[SentPart]:
        """Send what has changed since; the container is frozen, so this is the end of it."""
        trees = [self._send_tree(tree, frozen=True) for tree in self._subject.trees]
        return await all_of([*trees, self._send_printed()])

    async def _send_tree(self, tree: Tree, *, frozen: bool) -> SentPart:
        began = time.monotonic()
        name = f"{tree.name}:{self._passes}"
        async with packed(tree.source, self._indexes.get(tree.name), live=not frozen) as stream:
            part = await self._peer.send_files(self._run.id, name, self._counted(name, stream))
            assert stream.packed is not None
        self._indexes[tree.name] = stream.packed.index
        self._run.notes += [note for note in stream.packed.notes if note not in self._run.notes]
        self._run.part_done(part.name, part.bytes, began, frozen=frozen)
        return part

    async def _send_printed(self) -> SentPart:
        await drained(self._subject.pid)
        began = time.monotonic()
        part = await self._peer.send_printed(self._run.id, self._counted("printed", self._frames()))
        self._run.part_done(part.name, part.bytes, began, frozen=True)
        return part

    async def _log_segments(self) -> AsyncIterator[bytes]:
        for name, path in self._logs.items():
            with contextlib.suppress(FileNotFoundError):
                # of the current one only up to the mark: the rest is printed again
                is_current = self._mark is not None and name == self._mark.name
                end = self._mark.size if self._mark is not None and is_current else path.stat().st_size
                for chunk in segments_of(path, name, 0, end):
                    yield chunk
        yield END

    async def _frames(self) -> AsyncIterator[bytes]:
        if self._mark is not None:
            for frame in container_log.entries_since(self._logs, self._mark):
                yield frame

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
