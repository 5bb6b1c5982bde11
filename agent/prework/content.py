"""The bytes of one file that may be written to, cut or deleted while it is read.

What was promised in the header is what is given, whatever happens to the file meanwhile; the next pass
sees its new ctime and sends it again.
"""

import ctypes
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import replace

from agent.prework.tar import CHUNK, Entry, Kind, TarWriter

PIECE = 128 << 10
DIGEST = 16
WORTH_A_PATCH = 4 << 20
"""From this size on a changed file is sent as its changed pieces."""

_MAX_EXTENTS = 1 << 16
_WRITE_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def open_quietly(name: str, directory: int) -> int:
    """Open for reading; its atime stays if it is ours to keep. A fifo that took its place does not block us."""
    try:
        return os.open(name, _OPEN | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, _OPEN, dir_fd=directory)


def write_out(fd: int, *, through_overlay: bool) -> None:
    """Make its pages clean, so that the next store through a mapping is seen by the file system.

    sync_file_range does that without a journal commit, which fdatasync would cost for each small file. On a
    file that was opened through an overlay mount it succeeds and does nothing: the pages belong to another.
    """
    if through_overlay or _libc.sync_file_range(fd, 0, 0, _WRITE_AND_WAIT) != 0:
        os.fdatasync(fd)


def extents_of(fd: int, found: os.stat_result, size: int) -> "array[int] | None":
    """Offset, length, ... of its data as far as `size`, or None for a file without holes.

    A file in very many pieces has its tail sent whole: the map has to fit into memory on both ends.
    """
    if found.st_blocks * 512 >= size:
        return None
    extents = array("q")
    offset = 0
    while offset < size and len(extents) < 2 * _MAX_EXTENTS:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError:  # ENXIO: only a hole is left, or the file was cut meanwhile
            break
        if start >= size:
            break
        extents.extend((start, end - start))
        offset = end
    else:
        if extents and offset < size:
            extents[-1] = size - extents[-2]
    if len(extents) == 2 and extents[0] == 0 and extents[1] == size:
        return None
    if not extents or extents[-2] + extents[-1] < size:
        extents.extend((size, 0))  # as GNU tar does: the map says where the file ends
    return extents


def read(fd: int, offset: int, length: int) -> Iterator[bytes]:
    """Up to `length` bytes, in big pieces; fewer if the file has become shorter."""
    while length > 0:
        piece = os.pread(fd, min(length, CHUNK), offset)
        if not piece:
            return
        yield piece
        offset += len(piece)
        length -= len(piece)


def send(out: TarWriter, entry: Entry, fd: int, *, remember: bool) -> bytes | None:
    """Header and bytes, exactly as many as the header says; with `remember`, what each piece was."""
    out.begin(entry)
    kept: bytearray | None = bytearray() if remember and entry.extents is None else None
    for offset, length in _pairs(entry.extents or array("q", (0, entry.size))):
        end = offset + length
        for piece in read(fd, offset, length):
            out.data(piece)
            if offset % PIECE:
                kept = None  # it grew while it was read: digests only make sense on the grid
            if kept is not None:
                kept += _digests(piece)
            offset += len(piece)
        out.zeros(end - offset)
    return None if kept is None else bytes(kept)


def promise(out: TarWriter, entry: Entry) -> None:
    """Header and as many bytes, whatever they are: for the length of a stream that nobody takes."""
    out.begin(entry)
    out.zeros(entry.data_bytes)


def send_patch(out: TarWriter, entry: Entry, fd: int, before: bytes, base: int) -> bytes | None:
    """The pieces that differ from what the target has, or everything if that is most of it."""
    extents, now = _changed_pieces(fd, entry.size, before)
    patch = replace(entry, kind=Kind.PATCH, extents=extents, base=base)
    if patch.data_bytes > entry.size // 2:
        return send(out, entry, fd, remember=True)
    out.begin(patch)
    digests: bytearray | None = bytearray(now)
    for offset, length in _pairs(extents):
        end = offset + length
        for piece in read(fd, offset, length):
            out.data(piece)
            # In a live pass it may differ by now from what was compared: what counts is what was sent.
            if offset % PIECE:
                digests = None
            if digests is not None:
                sent = _digests(piece)
                at = offset // PIECE * DIGEST
                digests[at : at + len(sent)] = sent
            offset += len(piece)
        out.zeros(end - offset)
    return None if digests is None else bytes(digests)


def _pairs(extents: "array[int]") -> Iterator[tuple[int, int]]:
    return zip(extents[::2], extents[1::2], strict=True)


def _digests(piece: bytes) -> bytes:
    """One digest for each PIECE of it; the last may be shorter."""
    view = memoryview(piece)
    starts = range(0, len(piece), PIECE)
    return b"".join(hashlib.sha256(view[start : start + PIECE]).digest()[:DIGEST] for start in starts)


def _changed_pieces(fd: int, size: int, before: bytes) -> tuple["array[int]", bytes]:
    """What differs from the pass before, as offset, length, ...; and the digests of now."""
    extents = array("q")
    now = bytearray()
    for offset in range(0, size, PIECE):
        length = min(PIECE, size - offset)
        piece = os.pread(fd, length, offset)
        digest = hashlib.sha256(piece).digest()[:DIGEST] if len(piece) == length else b""
        at = len(now)
        now += digest or bytes(DIGEST)
        if digest and before[at : at + DIGEST] == digest:
            continue
        if extents and extents[-2] + extents[-1] == offset:
            extents[-1] += length
        else:
            extents.extend((offset, length))
    return extents, bytes(now)
