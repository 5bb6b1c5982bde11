"""Entries in, bytes out."""

import os
import struct
from array import array
from collections.abc import Callable
from functools import lru_cache

from agent.prework.tar.entry import BLOCK, CHUNK, VERSION, XATTR, Entry, Kind

_ZERO = bytes(CHUNK)
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL_SIZE = 0o77777777777

_TYPEFLAG = {
    Kind.FILE: b"0",
    Kind.PATCH: b"0",
    Kind.REMOVE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIR: b"5",
    Kind.FIFO: b"6",
    Kind.SOCKET: b"6",
}


def _record(key: bytes, value: bytes) -> bytes:
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if body + len(str(length)) != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(ns: int) -> bytes:
    sign = "-" if ns < 0 else ""
    seconds, rest = divmod(abs(ns), 1_000_000_000)
    return f"{sign}{seconds}.{rest:09d}".encode()


def _header(name: bytes, flag: bytes, size: int, entry: Entry | None = None, link: bytes = b"") -> bytes:
    e = entry or Entry(Kind.FILE, "")
    fields = (
        name[:100],
        b"%07o\0" % (e.mode & 0o7777),
        b"%07o\0" % (e.uid if e.uid <= _MAX_OCTAL_ID else 0),
        b"%07o\0" % (e.gid if e.gid <= _MAX_OCTAL_ID else 0),
        b"%011o\0" % (size if size <= _MAX_OCTAL_SIZE else 0),
        b"%011o\0" % min(max(e.mtime_ns // 1_000_000_000, 0), _MAX_OCTAL_SIZE),
        b" " * 8,
        flag,
        link[:100],
        b"ustar\00000",
        b"",
        b"",
        b"%07o\0" % e.device[0],
        b"%07o\0" % e.device[1],
        b"",
    )
    block = _USTAR.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


@lru_cache(maxsize=256)
def _extended_header(size: int, flag: bytes = b"x") -> bytes:
    return _header(b"PaxHeaders/transship", flag, size)


def _padding(size: int) -> bytes:
    return _ZERO[: -size % BLOCK]


def _plain(raw: bytes) -> bool:
    return len(raw) <= 100 and raw.isascii()


def _pax(entry: Entry, path: bytes, link: bytes, stored: int) -> bytes:
    records = [(b"mtime", _time(entry.mtime_ns)), (b"atime", _time(entry.atime_ns))]
    if entry.extents is not None:
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        records += [(b"GNU.sparse.name", path), (b"GNU.sparse.realsize", b"%d" % entry.size)]
    elif not _plain(path):
        records.append((b"path", path))
    if not _plain(link):
        records.append((b"linkpath", link))
    if stored > _MAX_OCTAL_SIZE:
        records.append((b"size", b"%d" % stored))
    for key, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if number > _MAX_OCTAL_ID:
            records.append((key, b"%d" % number))
    for name, value in entry.xattrs:
        records.append((XATTR + os.fsencode(name).replace(b"%", b"%25").replace(b"=", b"%3D"), value))
    return b"".join(_record(key, value) for key, value in records + _ours(entry))


def _ours(entry: Entry) -> list[tuple[bytes, bytes]]:
    records = []
    if entry.kind in (Kind.PATCH, Kind.REMOVE, Kind.SOCKET):
        records.append((b"TRANSSHIP.op", entry.kind.value.encode()))
    if entry.kind is Kind.PATCH:
        records.append((b"TRANSSHIP.base", b"%d" % entry.base))
    if entry.opaque:
        records.append((b"TRANSSHIP.opaque", b"1"))
    if entry.unmapped:
        records.append((b"TRANSSHIP.unmapped", entry.unmapped.encode()))
    return records


def _sparse_map(extents: "array[int]") -> bytes:
    text = b"%d\n" % (len(extents) // 2) + b"".join(b"%d\n" % n for n in extents)
    return text + _padding(len(text))


class TarWriter:
    """Entries in, bytes out. Small things are gathered into chunks; big data goes through untouched."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._buffer = bytearray()
        self._left = 0
        self._pad = b""
        self.bytes_written = self.data_bytes = self.entries = 0
        version = _record(b"TRANSSHIP.version", VERSION)
        self._put(_extended_header(len(version), b"g") + version + _padding(len(version)))

    def begin(self, entry: Entry) -> None:
        """Write the entry's header; `data` has to be given exactly `entry.data_bytes` bytes after it."""
        assert not self._left, "the entry before was not completed"
        path = os.fsencode(entry.path) or b"."
        link = os.fsencode(entry.link)
        mapping = b"" if entry.extents is None else _sparse_map(entry.extents)
        self._left = entry.data_bytes
        self.entries += 1
        self.data_bytes += self._left
        stored = len(mapping) + self._left
        pax = _pax(entry, path, link, stored)
        name = path if entry.extents is None else b"GNUSparseFile.0/" + path.rsplit(b"/", 1)[-1]
        head = _header(name, _TYPEFLAG[entry.kind], stored, entry, link)
        self._put(b"".join((_extended_header(len(pax)), pax, _padding(len(pax)), head, mapping)))
        self._pad = _padding(self._left)

    def data(self, piece: bytes) -> None:
        self._left -= len(piece)
        assert self._left >= 0, "more data than the header said"
        self._put(piece)
        if not self._left and self._pad:
            self._put(self._pad)

    def zeros(self, length: int) -> None:
        """Make up for what a file no longer has: the header has promised it."""
        while length > 0:
            self.data(_ZERO[: min(length, CHUNK)])
            length -= CHUNK

    def close(self) -> None:
        self._put(bytes(2 * BLOCK))
        self._flush()

    def _put(self, piece: bytes) -> None:
        self.bytes_written += len(piece)
        if len(piece) >= CHUNK // 4:
            self._flush()
            self._write(piece)
            return
        self._buffer += piece
        if len(self._buffer) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            self._write(bytes(self._buffer))
            self._buffer.clear()
