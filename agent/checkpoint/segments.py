"""Files that still grow, as a tarball: each member is a segment, named FILE@OFFSET (hexadecimal).

CRIU's page images only ever grow at their end, so they are followed while CRIU writes them; all else is small and is
sent whole when CRIU is done. The receiver writes each segment where it belongs: no file is ever whole in memory.
"""

import asyncio
import ctypes
import os
import re
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from agent.base.errors import CorruptPart

SEGMENT = 1 << 20
BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
MOST_OFFSET = 1 << 46
"""As for any file (prework.tar.Limits): no file system has larger ones."""
MOST_OPEN = 128
"""Files at once: a stream may have any number of them, and the agent has other things to open."""
LOOK_AGAIN_SECONDS = 0.002
"""Between two looks at files that grow; a look at a tmpfs costs some microseconds."""
GROWING = re.compile(r"pages-\d+\.img")
_libc = ctypes.CDLL(None, use_errno=True)
_NOTHING: Mapping[str, str] = MappingProxyType({})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def header(name: str, offset: int, size: int) -> bytes:
    info = tarfile.TarInfo(f"{name}@{offset:x}")
    info.size = size
    info.mode = 0o600
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    return b"\0" * (-size % BLOCK)


def segments_of(path: Path, name: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from `start` to `end` as members."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            data = os.pread(fd, min(SEGMENT, end - start), start)
            if not data:
                return
            yield header(name, start, len(data)) + data + padding(len(data))
            start += len(data)
    finally:
        os.close(fd)


async def follow(folder: Path, finished: asyncio.Event) -> AsyncIterator[bytes]:
    """Everything in `folder` as a tarball of segments, begun while the files still grow; ends after `finished`.

    What was sent of a growing file is punched out of it, so that the source does not hold the memory twice.
    """
    offsets: dict[str, int] = {}
    while not finished.is_set():
        moved = False
        for path in sorted(folder.iterdir()):
            if GROWING.fullmatch(path.name):
                async for chunk in _grown(path, offsets, least=SEGMENT):
                    moved = True
                    yield chunk
        if not moved:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
    for path in sorted(folder.iterdir(), key=lambda path: (bool(GROWING.fullmatch(path.name)), path.name)):
        if path.is_file():
            async for chunk in _grown(path, offsets, least=1):
                yield chunk
    yield END


async def _grown(path: Path, offsets: dict[str, int], *, least: int) -> AsyncIterator[bytes]:
    start = offsets.get(path.name, 0)
    end = path.stat().st_size
    if end - start < least:
        return
    for chunk in segments_of(path, path.name, start, end):
        yield chunk
    offsets[path.name] = end
    if GROWING.fullmatch(path.name):
        await asyncio.to_thread(_punch, path, start, end - start)


def _punch(path: Path, start: int, length: int) -> None:
    keep_size_and_punch = 0x01 | 0x02
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:  # best effort: where it fails, the source needs the room a little longer
        _libc.fallocate(fd, keep_size_and_punch, ctypes.c_long(start), ctypes.c_long(length))
    finally:
        os.close(fd)


class SegmentWriter:
    """Takes the tarball apart again as its bytes come; `feed` blocks only for the writes.

    Raises CorruptPart for whatever is not a segment of an expected file. `places` maps a member's file name to where
    it is written; None takes any well-formed name into `folder`, those of `aside` by another name.
    """

    def __init__(
        self,
        folder: Path,
        places: Mapping[str, Path] | None = None,
        limit: int | None = None,
        aside: Mapping[str, str] = _NOTHING,
    ) -> None:
        self._folder = folder
        self._places = places
        self._limit = limit
        self._aside = aside
        self._pending = bytearray()
        self._fds: dict[str, int] = {}
        self._left = 0
        self._pad = 0
        self._at = 0
        self._fd = -1
        self._ended = False
        self.bytes = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._pending += data
        view = memoryview(self._pending)
        used = 0
        try:
            while not self._ended:
                step = self._step(view[used:])
                if step == 0:
                    break
                used += step
        finally:
            view.release()
        del self._pending[:used]

    def _step(self, view: memoryview) -> int:
        """Consume something of what is there; 0 when more has to come."""
        if self._left:
            take = min(self._left, len(view))
            if take:
                os.pwrite(self._fd, view[:take], self._at)
                self._at += take
                self._left -= take
                self.bytes += take
            return take
        if self._pad:
            take = min(self._pad, len(view))
            self._pad -= take
            return take
        if len(view) < BLOCK:
            return 0
        self._open_member(bytes(view[:BLOCK]))
        return BLOCK

    def _open_member(self, block: bytes) -> None:
        if not any(block):
            self._ended = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            name, _, offset = info.name.partition("@")
            self._at = int(offset, 16)
        except (tarfile.HeaderError, ValueError) as error:
            raise CorruptPart(f"the stream of images is broken: {error}") from None
        if not 0 <= self._at <= MOST_OFFSET or info.size > MOST_OFFSET:
            raise CorruptPart(f"the stream has a segment where no file has any: {info.name!r}")
        if not info.isreg() or info.size < 0 or not NAME.fullmatch(name):
            raise CorruptPart(f"the stream has a member that is no segment: {info.name!r}")
        if self._limit is not None and self._at + info.size > self._limit:
            raise CorruptPart(f"{name} is larger than what was reserved for it")
        self._fd = self._open(name)
        self._left = info.size
        self._pad = -info.size % BLOCK

    def _open(self, name: str) -> int:
        fd = self._fds.pop(name, -1)
        if fd < 0:
            path = self._places.get(name) if self._places is not None else self._folder / self._aside.get(name, name)
            if path is None:
                raise CorruptPart(f"the stream has a file that is not expected: {name!r}")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._fds[name] = fd  # the newest last
        if len(self._fds) > MOST_OPEN:
            os.close(self._fds.pop(next(iter(self._fds))))
        return fd

    def finish(self) -> None:
        """Raises CorruptPart if the stream was cut off."""
        self.close()
        if not self._ended:
            raise CorruptPart("the stream was cut off")

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
