"""Bytes in, entries out. Whoever sent them is not trusted: every number is checked before it is believed."""

import os
from array import array
from collections.abc import Callable, Generator, Iterator

from agent.base.errors import CorruptPart
from agent.prework.tar.entry import BLOCK, CHUNK, VERSION, XATTR, Entry, Kind, Limits

_SPARSE = b"GNU.sparse."
_KIND = {
    b"0": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIR,
    b"6": Kind.FIFO,
}
_SPARSE_OK = {(kind, b"1", b"0") for kind in (Kind.FILE, Kind.PATCH)}
_OPS = {
    (b"0", b"patch"): Kind.PATCH,
    (b"0", b"remove"): Kind.REMOVE,
    (b"6", b"socket"): Kind.SOCKET,
}


class ByteSource:
    """Exact lengths out of a `read` that gives what it has; the end in the middle of something is corruption."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._view = memoryview(b"")
        self.bytes_read = 0

    def pieces(self, length: int) -> Iterator[memoryview]:
        while length > 0:
            if not self._view:
                self._fill()
            piece = self._view[:length]
            self._view = self._view[len(piece) :]
            length -= len(piece)
            yield piece

    def exactly(self, length: int) -> bytes:
        if length <= len(self._view):
            piece = bytes(self._view[:length])
            self._view = self._view[length:]
            return piece
        return b"".join(self.pieces(length))

    def skip(self, length: int) -> None:
        for _ in self.pieces(length):
            pass

    def rest(self) -> Iterator[bytes]:
        """What comes after the end, up to the end of the bytes."""
        if self._view:
            yield bytes(self._view)
        self._view = memoryview(b"")
        while chunk := self._read(CHUNK):
            self.bytes_read += len(chunk)
            yield chunk

    def _fill(self) -> None:
        chunk = self._read(CHUNK)
        if not chunk:
            raise CorruptPart("the stream was cut off", hint="The sender or the connection failed; try again.")
        self.bytes_read += len(chunk)
        self._view = memoryview(chunk)


def parse_pax(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header, keys with their values."""
    position = 0
    while position < len(block):
        space = block.find(b" ", position, position + 12)
        digits = block[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise CorruptPart("an extended header has a record without a length")
        end = position + int(digits)
        equals = block.find(b"=", space + 1, end)
        if end > len(block) or equals <= space + 1 or block[end - 1] != 0x0A:
            raise CorruptPart("an extended header has a malformed record")
        yield block[space + 1 : equals], block[equals + 1 : end - 1]
        position = end


def octal(field: bytes) -> int:
    text = field.rstrip(b"\0 ").lstrip(b" ")
    try:
        value = int(text, 8) if text else 0
    except ValueError:
        value = -1
    if value < 0:
        raise CorruptPart("a header has a field that is not a number")
    return value


def check_block(block: bytes) -> None:
    """A header's checksum is what tells it from anything else."""
    if sum(block) - sum(block[148:156]) + 256 != octal(block[148:156]):
        raise CorruptPart("a header's checksum is wrong")


def _decimal(value: bytes, limit: int) -> int:
    if not value.isdigit() or len(value) > 20 or int(value) > limit:
        raise CorruptPart("an extended header has a number that is none, or too big")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    sign = -1 if value.startswith(b"-") else 1
    seconds, _, fraction = value.lstrip(b"-").partition(b".")
    if len(value) > 40 or not seconds.isdigit() or (fraction and not fraction.isdigit()):
        raise CorruptPart("an extended header has a time that is none")
    ns = sign * (int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0"))
    if not -(1 << 63) <= ns < 1 << 63:
        raise CorruptPart("an extended header has a time that no clock can show")
    return ns


def _path(raw: bytes, limits: Limits) -> str:
    """A name that can only mean something below the root, or an error; the empty one is the root."""
    if raw in (b".", b"./"):
        return ""
    name = raw.removesuffix(b"/")
    if len(name) > limits.path_bytes or b"\0" in name:
        raise CorruptPart("an entry has a name that can't be")
    parts = name.split(b"/")
    if b"" in parts or b"." in parts or b".." in parts:
        shown = os.fsdecode(raw[:200])
        raise CorruptPart(f"an entry is named {shown!r}, which may lie outside of the tree")
    return os.fsdecode(name)


class TarReader:
    """Entries out of a stream that nobody vouches for. `data` gives the bytes of the entry last seen."""

    def __init__(self, read: Callable[[int], bytes], limits: Limits) -> None:
        self._source = ByteSource(read)
        self._limits = limits
        self._left = 0
        self._skip = 0
        self._version_seen = False
        self.entries = 0
        self.data_bytes = 0

    @property
    def bytes_read(self) -> int:
        return self._source.bytes_read

    def __iter__(self) -> Iterator[Entry]:
        pax: dict[bytes, bytes] = {}
        while (block := self._next_header()) is not None:
            flag = block[156:157]
            if flag in (b"x", b"g"):
                records = self._extended(octal(block[124:136]))
                if flag == b"g":
                    self._global(records)
                elif pax:
                    raise CorruptPart("two extended headers in a row")
                else:
                    pax = records
                continue
            self.entries += 1
            if not self._version_seen:
                raise CorruptPart("the stream is not one of transship's")
            if self.entries > self._limits.entries:
                raise CorruptPart("the stream has too many entries")
            yield self._entry(block, flag, pax)
            pax = {}

    def data(self, length: int) -> Iterator[memoryview]:
        if length > self._left:
            raise CorruptPart("an entry has less data than it says")
        for piece in self._source.pieces(length):
            self._left -= len(piece)
            yield piece

    def _next_header(self) -> bytes | None:
        self._source.skip(self._left + self._skip)
        self._left = self._skip = 0
        block = self._source.exactly(BLOCK)
        if any(block):
            check_block(block)
            return block
        if not self._version_seen:
            raise CorruptPart("the stream is not one of transship's")
        if any(self._source.exactly(BLOCK)) or any(any(chunk) for chunk in self._source.rest()):
            raise CorruptPart("something comes after the end of the stream")
        return None

    def _extended(self, size: int) -> dict[bytes, bytes]:
        if size > self._limits.header_bytes:
            raise CorruptPart("an extended header is too big")
        block = self._source.exactly(size)
        self._source.skip(-size % BLOCK)
        return dict(parse_pax(block))

    def _global(self, records: dict[bytes, bytes]) -> None:
        if records.get(b"TRANSSHIP.version") != VERSION:
            raise CorruptPart("the stream is of another version", hint="Both agents must be of one release.")
        self._version_seen = True

    def _entry(self, block: bytes, flag: bytes, pax: dict[bytes, bytes]) -> Entry:
        kind = _OPS.get((flag, pax[b"TRANSSHIP.op"])) if b"TRANSSHIP.op" in pax else _KIND.get(flag)
        if kind is None:
            raise CorruptPart(f"an entry is of no known kind ({flag!r})")
        big = 1 << 63
        stored = _decimal(pax[b"size"], big) if b"size" in pax else octal(block[124:136])
        entry = Entry(kind, self._name(block, pax), octal(block[100:108]) & 0o7777)
        entry.uid = _decimal(pax[b"uid"], 0xFFFFFFFE) if b"uid" in pax else octal(block[108:116])
        entry.gid = _decimal(pax[b"gid"], 0xFFFFFFFE) if b"gid" in pax else octal(block[116:124])
        entry.mtime_ns = _nanoseconds(pax[b"mtime"]) if b"mtime" in pax else octal(block[136:148]) * 1_000_000_000
        entry.atime_ns = _nanoseconds(pax[b"atime"]) if b"atime" in pax else entry.mtime_ns
        if kind in (Kind.CHAR, Kind.BLOCK):
            entry.device = (octal(block[329:337]), octal(block[337:345]))
        if kind is Kind.SYMLINK:
            entry.link = self._symlink_text(block, pax)
        elif kind is Kind.HARDLINK:
            entry.link = _path(pax.get(b"linkpath") or block[157:257].rstrip(b"\0"), self._limits)
        self._ours(entry, pax)
        self._open_data(entry, stored, pax)
        return entry

    def _name(self, block: bytes, pax: dict[bytes, bytes]) -> str:
        raw = pax.get(b"GNU.sparse.name") or pax.get(b"path")
        if raw is None:
            raw, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
            raw = prefix + b"/" + raw if prefix else raw
        return _path(raw, self._limits)

    def _symlink_text(self, block: bytes, pax: dict[bytes, bytes]) -> str:
        text = pax.get(b"linkpath") or block[157:257].rstrip(b"\0")
        if not text or b"\0" in text or len(text) > self._limits.path_bytes:
            raise CorruptPart("a symlink points nowhere that can be")
        return os.fsdecode(text)

    def _ours(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        entry.opaque = pax.get(b"TRANSSHIP.opaque") == b"1"
        unmapped = pax.get(b"TRANSSHIP.unmapped", b"")
        if unmapped not in (b"", b"u", b"g", b"ug") or (entry.opaque and entry.kind is not Kind.DIR):
            raise CorruptPart(f"{entry.path!r} has a mark that it cannot have")
        entry.unmapped = unmapped.decode()
        xattrs = []
        for key, value in pax.items():
            if key.startswith(XATTR):
                name = os.fsdecode(key[len(XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%"))
                if not name or "\0" in name or len(name) > 255:
                    raise CorruptPart(f"{entry.path!r} has an extended attribute without a possible name")
                xattrs.append((name, value))
        entry.xattrs = tuple(xattrs)

    def _open_data(self, entry: Entry, stored: int, pax: dict[bytes, bytes]) -> None:
        """Set the bounds of the entry's data; of a sparse one the map is read here, and must be one."""
        entry.size = self._left = stored
        self._skip = -stored % BLOCK
        if stored and entry.kind not in (Kind.FILE, Kind.PATCH):
            raise CorruptPart(f"{entry.path!r} has data, but is a {entry.kind.value}")
        sparse = any(key.startswith(_SPARSE) for key in pax)
        if entry.kind is Kind.PATCH:
            entry.base = _decimal(pax.get(b"TRANSSHIP.base", b"-"), self._limits.file_size)
        if sparse:
            if (entry.kind, pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")) not in _SPARSE_OK:
                raise CorruptPart("a sparse file is of a format that is not known")
            entry.size = _decimal(pax.get(b"GNU.sparse.realsize", b"-"), self._limits.file_size)
            entry.extents = self._read_map(entry.size)
        elif entry.kind is Kind.PATCH:
            raise CorruptPart("a patch has no map")
        self.data_bytes += self._left
        if entry.size > self._limits.file_size or self.data_bytes > self._limits.data_bytes:
            raise CorruptPart(f"{entry.path!r} is bigger than allowed")

    def _read_map(self, size: int) -> "array[int]":
        """Numbers, one a line, over as many blocks as they need."""
        numbers = self._map_numbers()
        count = next(numbers)
        if count > self._limits.extents:
            raise CorruptPart("a sparse file is in too many pieces")
        extents = array("q")
        end = 0
        for _ in range(count):
            offset, length = next(numbers), next(numbers)
            if offset < end or offset + length > size:
                raise CorruptPart("a sparse file's map is not in order")
            extents.extend((offset, length))
            end = offset + length
        numbers.close()
        if sum(extents[1::2]) != self._left:
            raise CorruptPart("a sparse file's map does not fit its data")
        return extents

    def _map_numbers(self) -> Generator[int, None, None]:
        tail = b""
        while len(tail) < 20:
            tail += b"".join(self.data(BLOCK))
            *lines, tail = tail.split(b"\n")
            for line in lines:
                yield _decimal(line, (1 << 63) - 1)
        raise CorruptPart("a sparse file's map is not one")
