"""The passes over a container's file trees and logs: the first while it runs, the delta after the freeze."""

import asyncio
import time
from collections.abc import AsyncIterator

from agent.base.errors import StepFailed
from agent.base.tasks import all_of
from agent.checkpoint import proc
from agent.checkpoint.freezer import Cgroup
from agent.checkpoint.segments import END, segments_of
from agent.doors.peer_client import PeerClient
from agent.migration.run import Run
from agent.migration.subject import Subject, Tree
from agent.prework import container_log, init, printed
from agent.prework.stream import packed
from agent.prework.tree import Index
from protocol.peer import SentPart

OUTSIDERS_SECONDS = 30.0
"""For probes of its health to end before the freeze; Docker's own limit for one."""
OUTSIDERS_LOOK_SECONDS = 0.01


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
        self._run.expects(0, self._subject.offer.files_bytes + self._subject.memory_bytes)
        self._mark = container_log.mark(self._logs)
        began = time.monotonic()
        part = await self._peer.send_log(self._run.id, self._counted("log", self._log_segments()))
        self._run.part_done(part.name, part.bytes, began, frozen=False)

    async def first(self) -> None:
        """Send all of the trees while the container runs; what changes meanwhile comes with the delta."""
        self._run.expects(self._subject.offer.files_bytes, self._subject.memory_bytes)
        if self._peer.answer is not None and self._peer.answer.init_wanted:
            await self._peer.send_files(self._run.id, "init", self._counted("init", init.read(self._subject.pid)))
        for tree in self._trees:
            await self._send_tree(tree, frozen=False)
        self._passes += 1
        self._run.expects(self._subject.memory_bytes)
        await alone(self._subject.pid, self._subject.cgroup)

    async def again(self) -> int:
        """Send what has changed since while the container runs on; how many bytes that were."""
        sent = 0
        for tree in self._trees:
            sent += (await self._send_tree(tree, frozen=False)).bytes
        self._passes += 1
        await alone(self._subject.pid, self._subject.cgroup)
        return sent

    async def delta(self) -> list[SentPart]:
        """Send what has changed since; the container is frozen, so this is the end of it."""
        trees = [self._send_tree(tree, frozen=True) for tree in self._trees]
        return await all_of([*trees, self._send_printed()])

    @property
    def _trees(self) -> list[Tree]:
        """Bind mounts only where the peer wants them."""
        wanted = self._peer.answer.binds if self._peer.answer is not None else ()
        return [tree for tree in self._subject.trees if not tree.bind or tree.source.root in wanted]

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
        began = time.monotonic()
        marked = await printed.marked(self._subject.pid) if self._mark is not None else frozenset()
        part = await self._peer.send_printed(self._run.id, self._counted("printed", self._frames(marked)))
        self._run.part_done(part.name, part.bytes, began, frozen=True)
        return part

    async def _log_segments(self) -> AsyncIterator[bytes]:
        # of the current one only up to the mark: the rest is printed again
        for name, path, size in self._mark.segments() if self._mark is not None else ():
            for chunk in segments_of(path, name, 0, size):
                yield chunk
        yield END

    async def _frames(self, marked: frozenset[int]) -> AsyncIterator[bytes]:
        if self._mark is not None:
            entries = await printed.all_of(self._logs, self._mark, marked)
            self._mark.close()
            for frame in container_log.frames(entries):
                yield frame

    async def _counted(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._run.sending(name)
        async for chunk in chunks:
            await self._run.pace(len(chunk), compressed=True)
            yield chunk
            self._run.sent(len(chunk))


async def alone(init: int, group: Cgroup) -> None:
    """Wait until all tasks are the container's own: what was put into it from outside is in no dump.

    Raises:
        StepFailed: a command of `docker exec`, or a probe, does not end in time.

    """
    end = time.monotonic() + OUTSIDERS_SECONDS
    while others := _outsiders(init, group):
        if time.monotonic() > end:
            raise StepFailed(
                f"{', '.join(others)} was started in it from outside, and still runs",
                hint="end it, or wait until it has ended, then move",
            )
        await asyncio.sleep(OUTSIDERS_LOOK_SECONDS)


def _outsiders(init: int, group: Cgroup) -> list[str]:
    found = proc.tasks(group.tasks())
    ours = {task.pid for task in proc.own(found, init)}
    return [f"pid {task.inner_pid} in it" for task in found if task.pid not in ours and task.state != "Z"]
