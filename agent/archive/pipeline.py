"""What lies between the tar and the disk or pipe: compression, encryption, the bytes themselves. Blocking, in threads.

Whichever way an archive was written, a reader finds out by its first bytes.
"""

import asyncio
import os
import select
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal, ParamSpec, Protocol, TypeVar

from agent.archive import crypt
from agent.base import zstd
from agent.base.errors import CorruptPart, Refused, StepTimeout, TransferFailed
from agent.base.tasks import to_the_end
from protocol.errors import ErrorCode

Compression = Literal["zstd", "gzip", "none"]

CHUNK = 1 << 18
ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
ZSTD_LEVEL = 3
ZSTD_WINDOW = 1 << 27
"""More memory than that no stream may ask of its reader; it is what the zstd program allows by default."""
GZIP = 16 + zlib.MAX_WBITS
IDLE_SECONDS = 120.0
"""For the other end of a pipe to take or give something."""
LOOK_MS = 100
"""How often a thread that waits for that looks whether anybody waits for it."""

P = ParamSpec("P")
A = TypeVar("A")


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(kind: Compression) -> _Compressor:
    match kind:
        case "zstd":
            return zstd.compressor(ZSTD_LEVEL)
        case "gzip":
            return zlib.compressobj(6, zlib.DEFLATED, GZIP)
        case "none":
            return _Plain()


class Output:
    """An archive on its way out: to a descriptor that stays the caller's."""

    def __init__(self, fd: int, compression: Compression, key: bytes | None = None) -> None:
        self._fd = _Descriptor(fd)
        self.size = 0
        self._sealer = crypt.Sealer(self._raw, key) if key is not None else None
        self._compressor = _compressor(compression)

    async def put(self, chunk: bytes) -> None:
        await self._fd.in_thread(self._put, chunk)

    async def finish(self) -> None:
        await self._fd.in_thread(self._finish)

    def _put(self, chunk: bytes) -> None:
        self._below(self._compressor.compress(chunk))

    def _finish(self) -> None:
        self._below(self._compressor.flush())
        if self._sealer is not None:
            self._sealer.close()

    def _below(self, data: bytes) -> None:
        if data:
            (self._sealer.write if self._sealer is not None else self._raw)(data)

    def _raw(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._fd.wait(select.POLLOUT, "nobody takes the archive")
            try:
                written = os.write(self._fd.number, left)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise TransferFailed("whoever was to take the archive has gone") from None
            except OSError as error:
                raise TransferFailed(f"the archive can't be written: {error.strerror}") from error
            self.size += written
            left = left[written:]


class _Descriptor:
    """One that threads work on and somebody else closes.

    No thread is at work on it any more when `in_thread` returns or raises, a cancel too: it would come back to the
    number, and by then that may be another file's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._given_up = False

    async def in_thread(self, work: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> A:
        thread = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(thread)
        finally:
            if not thread.done():
                self._given_up = True
                await to_the_end(asyncio.wait({thread}))
                thread.cancelled() or thread.exception()  # seen: it is of no interest any more

    def wait(self, event: int, what: str) -> None:
        poller, end = select.poll(), time.monotonic() + IDLE_SECONDS
        poller.register(self.number, event)
        while not self._given_up and not poller.poll(LOOK_MS):
            if time.monotonic() > end:
                raise StepTimeout(f"{what} for {IDLE_SECONDS:g} s")
        if self._given_up:
            raise TransferFailed("the archive is not wanted any more")


async def read(fd: int, key: bytes | None = None) -> AsyncIterator[bytes]:
    """The plain tar of an archive, whatever it is compressed and sealed with.

    Raises:
        Refused: it is sealed, and there is no key or another one.
        CorruptPart: it is broken or cut off.

    """
    source = _Descriptor(fd)
    chunks = _opened(source, key)
    while chunk := await source.in_thread(next, chunks, b""):
        yield chunk


class _Input:
    """Exact lengths of a descriptor."""

    def __init__(self, fd: _Descriptor) -> None:
        self._fd = fd
        self._rest = b""

    def exactly(self, length: int) -> bytes:
        """That many bytes; fewer only at the end."""
        while len(self._rest) < length and (more := self._some(length - len(self._rest))):
            self._rest += more
        found, self._rest = self._rest[:length], self._rest[length:]
        return found

    def chunk(self) -> bytes:
        if self._rest:
            found, self._rest = self._rest, b""
            return found
        return self._some(0)

    def peek(self, length: int) -> bytes:
        found = self.exactly(length)
        self._rest = found + self._rest
        return found

    def _some(self, least: int) -> bytes:
        while True:
            self._fd.wait(select.POLLIN, "nothing more of the archive has come")
            try:
                return os.read(self._fd.number, max(CHUNK, least))
            except BlockingIOError:
                continue


def _opened(fd: _Descriptor, key: bytes | None) -> Iterator[bytes]:
    """A generator from its first line on: nothing of it is read, and waited for, by whoever makes it."""
    source = _Input(fd)
    if source.peek(len(crypt.MAGIC)) == crypt.MAGIC:
        if key is None:
            raise Refused(ErrorCode.BAD_COMMAND, "the archive is sealed", hint="give its key with --key-file")
        yield from _inflated(crypt.Opener(source.exactly, key).chunk)
    else:
        yield from _inflated(source.chunk)


def _inflated(chunk: Callable[[], bytes]) -> Iterator[bytes]:
    first = b""
    while len(first) < len(ZSTD_MAGIC) and (more := chunk()):
        first += more
    if first.startswith(ZSTD_MAGIC):
        yield from _unpacked(first, chunk, zstd.decompressor(ZSTD_WINDOW))
    elif first.startswith(GZIP_MAGIC):
        yield from _unpacked(first, chunk, zlib.decompressobj(GZIP))
    else:
        data = first
        while data:
            yield data
            data = chunk()


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _unpacked(first: bytes, chunk: Callable[[], bytes], inflater: _Decompressor) -> Iterator[bytes]:
    """In small bites: a few bytes may stand for very many, and only so many are in memory at once."""
    data = first
    while data:
        for at in range(0, len(data), BITE):
            if inflater.eof:
                raise CorruptPart("there is something behind the archive's end")
            try:
                plain = inflater.decompress(data[at : at + BITE])
            except (zstd.ZstdError, zlib.error) as error:
                raise CorruptPart(f"the archive can't be decompressed: {error}") from None
            for start in range(0, len(plain), CHUNK):
                yield plain[start : start + CHUNK]
        data = chunk()
    if not inflater.eof or inflater.unused_data:
        raise CorruptPart("the archive was cut off, or has something behind its end")


BITE = 1 << 10
