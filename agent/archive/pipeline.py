"""What lies between the tar and the disk or pipe: compression, encryption, the bytes themselves. Blocking, in threads.

Whichever way an archive was written, a reader finds out by its first bytes.
"""

import asyncio
import os
import select
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import zstandard

from agent.archive import crypt
from agent.base.errors import CorruptPart, Refused, StepTimeout, TransferFailed
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
            return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
        case "gzip":
            return zlib.compressobj(6, zlib.DEFLATED, GZIP)
        case "none":
            return _Plain()


class Output:
    """An archive on its way out: to a descriptor that stays the caller's."""

    def __init__(self, fd: int, compression: Compression, key: bytes | None = None) -> None:
        self._fd = fd
        self.size = 0
        self._sealer = crypt.Sealer(self._raw, key) if key is not None else None
        self._compressor = _compressor(compression)

    async def put(self, chunk: bytes) -> None:
        await asyncio.to_thread(self._put, chunk)

    async def finish(self) -> None:
        await asyncio.to_thread(self._finish)

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
            _wait(self._fd, select.POLLOUT, "nobody takes the archive")
            try:
                written = os.write(self._fd, left)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise TransferFailed("whoever was to take the archive has gone") from None
            except OSError as error:
                raise TransferFailed(f"the archive can't be written: {error.strerror}") from error
            self.size += written
            left = left[written:]


def _wait(fd: int, event: int, what: str) -> None:
    poller = select.poll()
    poller.register(fd, event)
    if not poller.poll(IDLE_SECONDS * 1000):
        raise StepTimeout(f"{what} for {IDLE_SECONDS:g} s")


async def read(fd: int, key: bytes | None = None) -> AsyncIterator[bytes]:
    """The plain tar of an archive, whatever it is compressed and sealed with.

    Raises:
        Refused: it is sealed, and there is no key or another one.
        CorruptPart: it is broken or cut off.

    """
    chunks = _opened(fd, key)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


def read_file(path: Path, key: bytes | None = None) -> Iterator[bytes]:
    """The same for a file, blocking."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _opened(fd, key)
    finally:
        os.close(fd)


class _Input:
    """Exact lengths of a descriptor."""

    def __init__(self, fd: int) -> None:
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
            _wait(self._fd, select.POLLIN, "nothing more of the archive has come")
            try:
                return os.read(self._fd, max(CHUNK, least))
            except BlockingIOError:
                continue


def _opened(fd: int, key: bytes | None) -> Iterator[bytes]:
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
        yield from _unpacked(first, chunk, zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj())
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
            except (zstandard.ZstdError, zlib.error) as error:
                raise CorruptPart(f"the archive can't be decompressed: {error}") from None
            for start in range(0, len(plain), CHUNK):
                yield plain[start : start + CHUNK]
        data = chunk()
    if not inflater.eof or inflater.unused_data:
        raise CorruptPart("the archive was cut off, or has something behind its end")


BITE = 1 << 10
