"""Where archives go to and come from: the host's folder, or a pipe that a controller on this host has made.

No command names a path: a controller that may talk to the broker must not be able to write anywhere on a host. Whoever
wants an archive in a file of their own makes a folder below `PIPES` (root's alone), with two fifos in it, and moves the
bytes by their own rights:

    data    the archive
    ack     controller -> agent: one line, when all of it is on the disk
    key     the key to seal or open it with, if there is one
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from agent.archive import pipeline
from agent.archive.pipeline import Compression, Output
from agent.base.durable import publish
from agent.base.errors import Refused, StepFailed, TransferFailed
from agent.base.tasks import to_the_end
from agent.vault.store import Store
from protocol.checkpoint import CheckpointInfo
from protocol.errors import ErrorCode

PIPES = Path("/run/transship/pipes")
DATA, ACK, KEY = "data", "ack", "key"
KEPT = b"kept\n"
ACK_SECONDS = 300.0
MOST_KEY_BYTES = 1 << 16


class Place(Protocol):
    """Where an archive is written to."""

    shown: str
    sealed: bool

    @property
    def size(self) -> int: ...
    async def put(self, chunk: bytes) -> None: ...
    async def keep(self) -> None:
        """Return when all of its bytes are where they outlive this host's crash."""

    async def drop(self) -> None:
        """Make sure that nothing is left of it."""

    async def note(self, info: CheckpointInfo) -> None:
        """Write down what it is, beside it; where it lies in a folder, it is there from then on."""

    def close(self) -> None:
        """Let go of it; what was not kept is removed."""


class InStore:
    """A new file in the host's folder."""

    def __init__(self, store: Store, container: str, checkpoint: str, compression: Compression) -> None:
        key = store.key()
        self.sealed = key is not None
        self._store = store
        self._checkpoint = checkpoint
        self._path = store.new_file(container, checkpoint, compression)
        self._part = self._path.with_name(f".{self._path.name}.part")
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._output = Output(self._fd, compression, key)
        self.shown = str(self._path)

    @property
    def size(self) -> int:
        return self._output.size

    async def put(self, chunk: bytes) -> None:
        await self._output.put(chunk)

    async def keep(self) -> None:
        await self._output.finish()
        await to_the_end(asyncio.to_thread(os.fsync, self._fd))

    def _list(self, info: CheckpointInfo) -> None:
        self._store.note(info)  # first: with its name the archive is complete, and known
        publish(self._part, self._path)

    async def drop(self) -> None:
        self._path.unlink(missing_ok=True)
        self._store.forget(self._checkpoint)

    async def note(self, info: CheckpointInfo) -> None:
        await to_the_end(asyncio.to_thread(self._list, info))

    def close(self) -> None:
        os.close(self._fd)
        self._part.unlink(missing_ok=True)


class InPipe:
    """A pipe; whoever reads it says when all of it is safe."""

    def __init__(self, pipe: str, compression: Compression) -> None:
        folder = _folder(pipe)
        key = _key(folder)
        self.sealed = key is not None
        self.shown = "-"
        with contextlib.ExitStack() as opened:
            self._ack = _open(folder / ACK, os.O_RDONLY)
            opened.callback(os.close, self._ack)
            self._fd = _open(folder / DATA, os.O_WRONLY)
            opened.pop_all()
        self._output = Output(self._fd, compression, key)
        self._closed = False

    @property
    def size(self) -> int:
        return self._output.size

    async def put(self, chunk: bytes) -> None:
        await self._output.put(chunk)

    async def keep(self) -> None:
        await self._output.finish()
        self._end()
        try:
            async with asyncio.timeout(ACK_SECONDS):
                said = await _line(self._ack)
        except TimeoutError:
            said = b""
        if said != KEPT:
            raise TransferFailed("whoever took the archive has not said that it is safe")

    async def drop(self) -> None:
        """It is the reader's."""

    async def note(self, info: CheckpointInfo) -> None:
        """The reader gets it with the reply."""

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def close(self) -> None:
        self._end()
        os.close(self._ack)


class Source(Protocol):
    """Where an archive is read from."""

    def read(self) -> AsyncIterator[bytes]: ...
    def close(self) -> None: ...


class FromStore:
    """A file in the host's folder."""

    def __init__(self, store: Store, checkpoint: str) -> None:
        self._key = store.key()
        self._fd = os.open(store.path_of(checkpoint), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def read(self) -> AsyncIterator[bytes]:
        return pipeline.read(self._fd, self._key)

    def close(self) -> None:
        os.close(self._fd)


class FromPipe:
    """A pipe that a controller writes to."""

    def __init__(self, pipe: str) -> None:
        folder = _folder(pipe)
        self._key = _key(folder)
        self._fd = _open(folder / DATA, os.O_RDONLY)

    def read(self) -> AsyncIterator[bytes]:
        return pipeline.read(self._fd, self._key)

    def close(self) -> None:
        os.close(self._fd)


def _folder(pipe: str) -> Path:
    folder = PIPES / pipe
    try:
        found = folder.lstat()
    except OSError:
        raise Refused(
            ErrorCode.BAD_COMMAND,
            "there is no such pipe on this host",
            hint="a file or `-` is read and written on the host itself, by root: run transship there",
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Refused(ErrorCode.BAD_COMMAND, f"{folder} may be written to by others than its owner")
    return folder


def _open(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StepFailed(f"{path} can't be opened: {error.strerror}", hint="is anybody at its other end?") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(ErrorCode.BAD_COMMAND, f"{path} is no pipe")
    return fd


def _key(folder: Path) -> bytes | None:
    try:
        fd = os.open(folder / KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(MOST_KEY_BYTES)


async def _line(fd: int) -> bytes:
    """What a controller says; nothing where it goes without a word."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    said = b""
    try:
        while not said.endswith(b"\n"):
            await ready.wait()
            ready.clear()
            try:
                more = os.read(fd, 64)
            except BlockingIOError:
                continue
            if not more:
                break
            said += more
    finally:
        loop.remove_reader(fd)
    return said
