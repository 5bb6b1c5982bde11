"""What is in a tree, and what has changed since the last look.

An `Index` remembers what was sent as what `lstat` said just before it was read. The kernel bumps ctime at
every change, and nobody can set it; with inode, mtime, size and mode it tells a changed file from an
unchanged one, with two exceptions that are dealt with here and in `pack`:

- A change within the same tick of the kernel's coarse clock leaves ctime as it was. As in git's index,
  what had changed so shortly before it was read is RACY: it counts as changed at the next look.
- A store through a shared mapping bumps ctime only when it makes a clean page dirty. `pack` writes dirty
  pages out after `lstat` and before it reads, so that later stores are seen; on file systems where that
  does not work (tmpfs) every file is RACY.

Of an overlay's upper directory the driver's marks are decoded here: whiteouts, opaque directories, and
renamed directories (`redirect_dir`), whose content is taken from the merged view.
"""

import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from agent.base.errors import StepFailed
from agent.prework.confined import Confined, lstat_at, names_in, without_following
from agent.prework.ids import IdMap

RACY, OPAQUE, XWHITEOUTS, FROM_MERGED = 1, 2, 4, 8
WHITEOUT = b"w"
UNSETTLED = b""
"""Something was there and may have been sent, nobody knows what: equal to nothing."""

_RECORD = struct.Struct("<QqqqIB")
_COARSE_TICK_NS = 20_000_000
_WHOLE_SECONDS_NS = 2_000_000_000
# Where a store into a clean mapped page is known to go through the file system, which then bumps ctime.
_CTIME_SEES_MAPPINGS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
_NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Source:
    """A tree to be sent: the upper directory of an overlay (`layer`), or a plain one."""

    root: str
    layer: bool = False
    merged: str | None = None
    """Where the overlay is mounted (/proc/PID/root will do): needed if the kernel keeps renamed directories as
    references into the image. What else is mounted below it is left out."""
    user_xattrs: bool = False
    """The overlay was mounted with `userxattr`, as a rootless engine does."""
    ids: IdMap = field(default_factory=IdMap)

    def overlay_name(self, xattr: str) -> str | None:
        """`opaque` for `trusted.overlay.opaque`; None for what is not the driver's."""
        prefix = "user.overlay." if self.user_xattrs else "trusted.overlay."
        return xattr[len(prefix) :] if xattr.startswith(prefix) else None


class Index:
    """Path -> what was sent. About 200 bytes a path: names are kept once, by directory."""

    def __init__(self) -> None:
        self._children: dict[str, dict[str, bytes]] = {}
        self._root: bytes | None = None
        self.digests: dict[str, bytes] = {}
        """Of big files only: what each piece was, so that the next pass need not send it all."""
        self.data_bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._children.values())) + (self._root is not None)

    def record(self, path: str) -> bytes | None:
        if not path:
            return self._root
        above, _, name = path.rpartition("/")
        return self._children.get(above, _NOTHING).get(name)

    def children(self, path: str) -> Mapping[str, bytes]:
        return self._children.get(path, _NOTHING)

    def keep(self, path: str, children: dict[str, bytes]) -> None:
        """Take over what is unchanged in a directory; the first thing said of its children."""
        if children:
            self._children[path] = children

    def put(self, path: str, record: bytes) -> None:
        if not path:
            self._root = record
            return
        above, _, name = path.rpartition("/")
        self._children.setdefault(above, {})[name] = record


@dataclass(frozen=True, slots=True)
class Child:
    """Anything but a directory."""

    name: str
    stat: os.stat_result
    record: bytes


@dataclass(slots=True)
class Directory:
    """One directory as it is now, beside what the pass before knew. `fd` is good until the walk goes on."""

    path: str
    fd: int
    stat: os.stat_result
    record: bytes
    looked_at_ns: int
    known: bytes | None
    emptied: bool = False
    """It hides the image's directory since the last pass: all of its content has to be sent."""
    mount_point: bool = False
    before: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING)
    unchanged: dict[str, bytes] = field(default_factory=dict)
    """What is as it was and has one name only: all there is to be done about it is to remember it."""
    children: list[Child] = field(default_factory=list)
    """All the others."""
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Gone:
    """A directory that was listed, and is none any more."""

    path: str


def record_of(found: os.stat_result, marks: int = 0) -> bytes:
    return _RECORD.pack(found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_mode, marks)


def is_racy(found: os.stat_result, looked_at_ns: int) -> bool:
    """Could a change after `looked_at_ns` leave the same ctime? Some file systems keep whole seconds only."""
    tick = _WHOLE_SECONDS_NS if found.st_ctime_ns % 1_000_000_000 == 0 else _COARSE_TICK_NS
    return found.st_ctime_ns >= looked_at_ns - tick


def settled(found: os.stat_result, looked_at_ns: int, marks: int = 0, *, trusted: bool = True) -> bytes:
    """The record for the index of what was just sent."""
    unsafe = stat.S_ISREG(found.st_mode) and not trusted
    return record_of(found, marks | (RACY if unsafe or is_racy(found, looked_at_ns) else 0))


def size_if_same_inode(record: bytes, found: os.stat_result) -> int | None:
    if len(record) != _RECORD.size:
        return None
    inode, _, _, size, _, _ = _RECORD.unpack(record)
    return int(size) if inode == found.st_ino else None


def mount_id(fd: int) -> str:
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))


def ctime_is_trusted(root: str) -> bool:
    """Does the file system below it bump ctime for stores through mappings?"""
    fd = os.open(root, os.O_PATH)
    try:
        mount = mount_id(fd)
    finally:
        os.close(fd)
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        if line.split(" ", 1)[0] == mount:
            return line.split(" - ")[-1].split(" ", 1)[0] in _CTIME_SEES_MAPPINGS
    return False


def scan(source: Source) -> Index:
    """What is there, without reading any of it: for estimates. Not a base for a delta, since nothing was sent."""
    index = Index()
    trusted = ctime_is_trusted(source.root)
    for found in walk(source, Index()):
        if isinstance(found, Gone):
            continue
        index.put(found.path, settled(found.stat, found.looked_at_ns, found.record[-1]))
        for child in found.children:
            whiteout = child.record == WHITEOUT
            path = f"{found.path}/{child.name}" if found.path else child.name
            index.put(path, WHITEOUT if whiteout else settled(child.stat, found.looked_at_ns, trusted=trusted))
            if stat.S_ISREG(child.stat.st_mode):
                index.data_bytes += min(child.stat.st_size, child.stat.st_blocks * 512)
    return index


def walk(source: Source, previous: Index) -> Iterator[Directory | Gone]:
    """Every directory, parents first, in order of names."""
    with ExitStack() as stack:
        upper = stack.enter_context(Confined(source.root))
        merged = stack.enter_context(Confined(source.merged)) if source.layer and source.merged else None
        yield from _Walk(source, previous, upper, merged).run()


class _Walk:
    def __init__(self, source: Source, previous: Index, upper: Confined, merged: Confined | None) -> None:
        self._source = source
        self._previous = previous
        self._upper = upper
        self._merged = merged
        self._device = os.fstat(upper.directory("")).st_dev
        self._merged_device = os.fstat(merged.directory("")).st_dev if merged else 0

    def run(self) -> Iterator[Directory | Gone]:
        pending = [("", False, False)]
        while pending:
            path, from_merged, forced = pending.pop()
            try:
                found, subdirectories = self._look(path, from_merged, forced)
            except (FileNotFoundError, NotADirectoryError):
                yield Gone(path)
                continue
            yield found
            from_merged = from_merged or bool(found.record[-1] & FROM_MERGED)
            prefix = f"{path}/" if path else ""
            pending.extend((prefix + name, from_merged, forced or found.emptied) for name in reversed(subdirectories))

    def _look(self, path: str, from_merged: bool, forced: bool) -> tuple[Directory, list[str]]:
        fd = (self._merged if from_merged and self._merged else self._upper).directory(path)
        now = time.time_ns()
        found = os.fstat(fd)
        known = self._previous.record(path)
        marks = FROM_MERGED if from_merged else 0
        if self._source.layer and not from_merged:
            marks = self._marks(path, fd, record_of(found), known)
            if marks & FROM_MERGED and self._merged is not None:
                fd = self._merged.directory(path)
        directory = Directory(path, fd, found, record_of(found, marks), now, known)
        directory.emptied = bool(marks & OPAQUE and not _was_opaque(known))
        if found.st_dev != (self._merged_device if from_merged else self._device):
            directory.mount_point = True
            return directory, []
        if not (forced or directory.emptied):
            directory.before = self._previous.children(path)
        return directory, self._list(directory, marks)

    def _marks(self, path: str, fd: int, now: bytes, known: bytes | None) -> int:
        """The driver's marks on a directory; they are xattrs, so an unchanged record has them already."""
        if known is not None and known[:-1] == now[:-1] and not known[-1] & RACY:
            return known[-1]
        marks = 0
        for xattr in os.listxattr(fd):
            name = self._source.overlay_name(xattr)
            if name == "opaque":
                marks |= {b"y": OPAQUE, b"x": XWHITEOUTS}.get(os.getxattr(fd, xattr), 0)
            elif name == "redirect":
                if self._merged is None:
                    raise needs_merged(path)
                marks |= OPAQUE | FROM_MERGED
        return marks

    def _list(self, directory: Directory, marks: int) -> list[str]:
        """Sort what is in a directory into what is unchanged and what is not. Runs once for each file while frozen."""
        fd, before, unchanged = directory.fd, directory.before, directory.unchanged
        subdirectories = []
        present = set()
        for name in sorted(names_in(fd)):
            found = lstat_at(fd, name)
            if found is None:
                continue
            present.add(name)
            mode = found.st_mode
            if stat.S_ISDIR(mode):
                subdirectories.append(name)
                continue
            record = record_of(found)
            if found.st_nlink == 1 and before.get(name) == record:
                unchanged[name] = before[name]
            elif self._is_whiteout(directory, name, found, marks):
                directory.children.append(Child(name, found, WHITEOUT))
            else:
                directory.children.append(Child(name, found, record))
        directory.removed = sorted(before.keys() - present)
        return subdirectories

    def _is_whiteout(self, directory: Directory, name: str, found: os.stat_result, marks: int) -> bool:
        if not self._source.layer or marks & FROM_MERGED:
            return False
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev == 0
        if not marks & XWHITEOUTS or found.st_size or not stat.S_ISREG(found.st_mode):
            return False
        xattrs = os.listxattr(without_following(directory.fd, name), follow_symlinks=False)
        return any(self._source.overlay_name(xattr) == "whiteout" for xattr in xattrs)


def _was_opaque(record: bytes | None) -> bool:
    return record is not None and len(record) > 1 and bool(record[-1] & OPAQUE)


def needs_merged(path: str) -> StepFailed:
    return StepFailed(
        f"the directory {path!r} was renamed, and this kernel keeps it as a reference into the image",
        hint="The container's merged mount has to be given too, or the kernel's overlay.redirect_dir switched off.",
    )
