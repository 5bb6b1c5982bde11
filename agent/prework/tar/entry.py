"""One thing in the stream, and how much of it a stream may have. No bytes are written or read here."""

from array import array
from dataclasses import dataclass
from enum import Enum

BLOCK = 512
CHUNK = 1 << 20
VERSION = b"1"
XATTR = b"SCHILY.xattr."


class Kind(Enum):
    FILE = "file"
    PATCH = "patch"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"
    CHAR = "char"
    BLOCK = "block"
    DIR = "dir"
    FIFO = "fifo"
    SOCKET = "socket"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stream may ask for. Beyond it the stream is called corrupt, not big."""

    entries: int = 20_000_000
    data_bytes: int = 1 << 46
    file_size: int = 1 << 46
    header_bytes: int = 4 << 20
    path_bytes: int = 32 << 10
    extents: int = 1 << 18


@dataclass(slots=True)
class Entry:
    """One thing in the stream. Not frozen, though nobody changes it: a frozen one costs twice the time to make."""

    kind: Kind
    path: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    size: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    extents: "array[int] | None" = None
    """Offset, length, offset, length, ... of what is not a hole."""
    opaque: bool = False
    unmapped: str = ""
    base: int = 0

    @property
    def data_bytes(self) -> int:
        if self.kind not in (Kind.FILE, Kind.PATCH):
            return 0
        return self.size if self.extents is None else sum(self.extents[1::2])
