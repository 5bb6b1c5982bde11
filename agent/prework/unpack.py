"""A stream into a mounted root or a volume.

Whoever made the stream gets nothing outside of the root: names are checked by the reader, directories are
reached only as `Confined` does, and whatever is made is made new (O_EXCL), never written through. Limits
bound what it may cost. Nothing is trusted to be complete before the stream's end was seen.

A directory gets its owner, mode, xattrs and times when the stream leaves it: making its content would
change its mtime, and a default ACL would rub off on what is made in it.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from agent.base.errors import CorruptPart, StepFailed
from agent.prework.confined import Confined, is_directory, lstat_at, without_following
from agent.prework.ids import ACL_NAMES, CAPABILITY, IdMap, xattr_to_host
from agent.prework.tar import Entry, Kind, Limits, TarReader

T = TypeVar("T")

_MAX_NOTES = 100
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO, Kind.SOCKET: stat.S_IFSOCK}
_XATTR_SPACES = ("user.", "trusted.")
_XATTR_NAMES = frozenset({*ACL_NAMES, CAPABILITY})
# What a stream can bring about by what it says; any other error is this host's own.
_STREAMS_FAULT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
    | {errno.EFBIG, errno.EMLINK, errno.EILSEQ, errno.EOVERFLOW, errno.EXDEV, errno.ENXIO}
)


@dataclass(frozen=True, slots=True)
class Summary:
    entries: int
    removed: int
    data_bytes: int
    stream_bytes: int
    notes: tuple[str, ...]
    """What could not be made as the stream says, one sentence each."""


def apply(
    root: str | int,
    read: Callable[[int], bytes],
    *,
    ids: IdMap | None = None,
    devices: bool = False,
    limits: Limits | None = None,
    check: Callable[[], None] = lambda: None,
) -> Summary:
    """Make the tree below `root` what the stream says. `check` is called for each entry, and may raise to stop it."""
    reader = TarReader(read, limits or Limits())
    path = ""
    try:
        with Confined(root) as tree:
            applier = _Applier(tree, reader, ids or IdMap(), devices)
            for entry in reader:
                check()
                path = entry.path
                applier.entry(entry)
            applier.leave_all()
    except OSError as error:
        raise _renamed(error, path) if reader.entries else StepFailed(f"{root} can't be opened: {error}") from error
    return Summary(reader.entries, applier.removed, reader.data_bytes, reader.bytes_read, tuple(applier.notes))


def _renamed(error: OSError, path: str) -> StepFailed:
    if error.errno in _STREAMS_FAULT:
        return CorruptPart(f"{path!r} can't be made where the stream wants it: {error.strerror}")
    hint = "Free some space on this host." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return StepFailed(f"{path!r} can't be written: {error.strerror}", hint=hint)


class _Applier:
    def __init__(self, tree: Confined, reader: TarReader, ids: IdMap, devices: bool) -> None:
        self._tree = tree
        self._reader = reader
        self._ids = ids
        self._devices = devices
        self._inside: list[Entry] = []
        self._heir_of: tuple[str, bool] = ("/", False)
        self.removed = 0
        self.notes: list[str] = []

    def entry(self, entry: Entry) -> None:
        self._leave(entry.path)
        if entry.kind is Kind.DIR:
            self._directory(entry)
            return
        if not entry.path:
            raise CorruptPart("the root of the tree can only be a directory")
        match entry.kind:
            case Kind.REMOVE:
                self.removed += self._tree.remove(entry.path)
            case Kind.FILE:
                self._file(entry)
            case Kind.PATCH:
                self._patch(entry)
            case Kind.HARDLINK:
                self._hard_link(entry)
            case Kind.SYMLINK:
                self._made(entry, lambda fd, name: os.symlink(entry.link, name, dir_fd=fd))
            case _:
                self._special(entry)

    # --- directories -------------------------------------------------------------------------------------------------

    def _directory(self, entry: Entry) -> None:
        if entry.path:
            fd, name = self._tree.parent(entry.path)
            found = lstat_at(fd, name)
            if found is not None and (entry.opaque or not is_directory(found)):
                # Made anew, an overlay marks it opaque by itself.
                self._tree.remove(entry.path)
                fd, name = self._tree.parent(entry.path)
                found = None
            if found is None:
                os.mkdir(name, 0o700, dir_fd=fd)
        elif entry.opaque:
            self._tree.empty("")
        self._inside.append(entry)

    def _leave(self, path: str) -> None:
        """The directories that the entry at `path` is not below of are complete."""
        while self._inside:
            above = self._inside[-1].path
            if path and (not above or path.startswith(above + "/")):
                return
            self._complete(self._inside.pop())

    def leave_all(self) -> None:
        while self._inside:
            self._complete(self._inside.pop())

    def _complete(self, entry: Entry) -> None:
        fd = self._tree.directory(entry.path)
        os.fchown(fd, *self._owner(entry))
        wanted = {name for name, _ in entry.xattrs}
        self._strip(fd, entry, wanted)
        self._set_xattrs(fd, entry)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.atime_ns, entry.mtime_ns))
        self._heir_of = ("/", False)

    # --- files -------------------------------------------------------------------------------------------------------

    def _file(self, entry: Entry) -> None:
        fd = self._anew(entry, lambda parent, name: os.open(name, _NEW, 0o600, dir_fd=parent))
        try:
            self._write(fd, entry)
            self._finish(fd, entry, inherited=self._is_heir(entry.path))
        finally:
            os.close(fd)

    def _patch(self, entry: Entry) -> None:
        """The one case in which something that is there is written to: it has to be what the sender knows."""
        parent, name = self._tree.parent(entry.path)
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.base:
                raise CorruptPart(f"{entry.path!r} is not the file that the changes were made for")
            self._write(fd, entry)
            self._strip(fd, entry, {name for name, _ in entry.xattrs})
            self._finish(fd, entry, inherited=False)
        finally:
            os.close(fd)

    def _write(self, fd: int, entry: Entry) -> None:
        if entry.extents is None:
            for piece in self._reader.data(entry.size):
                _write_all(fd, piece)
            return
        for offset, length in zip(entry.extents[::2], entry.extents[1::2], strict=True):
            if length:
                os.lseek(fd, offset, os.SEEK_SET)
            for piece in self._reader.data(length):
                _write_all(fd, piece)
        os.ftruncate(fd, entry.size)

    def _finish(self, fd: int, entry: Entry, *, inherited: bool) -> None:
        """In this order: a new owner takes capabilities and setuid away, and an ACL sets bits of the mode."""
        os.fchown(fd, *self._owner(entry))
        if inherited:
            _remove_xattr(fd, ACL_NAMES[0])
        self._set_xattrs(fd, entry)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.atime_ns, entry.mtime_ns))

    # --- other kinds -------------------------------------------------------------------------------------------------

    def _hard_link(self, entry: Entry) -> None:
        try:
            self._link(entry)
        except FileExistsError:
            first, second = (lstat_at(*self._tree.parent(path)) for path in (entry.link, entry.path))
            if first is not None and second is not None and os.path.samestat(first, second):
                return
            self._tree.remove(entry.path)
            self._link(entry)

    def _link(self, entry: Entry) -> None:
        # A copy of the first descriptor: looking for the second may close it.
        first, first_name = self._tree.parent(entry.link)
        first = os.dup(first)
        try:
            fd, name = self._tree.parent(entry.path)
            if is_directory(lstat_at(first, first_name)):
                raise CorruptPart(f"{entry.path!r} is to be a link to a directory")
            os.link(first_name, name, src_dir_fd=first, dst_dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(first)

    def _special(self, entry: Entry) -> None:
        if entry.kind in (Kind.CHAR, Kind.BLOCK) and not self._devices:
            raise CorruptPart(
                f"{entry.path!r} is a device node, which is not allowed here",
                hint="Allow devices for this volume, or remove the node.",
            )
        mode = _FORMAT[entry.kind] | 0o600
        self._made(entry, lambda fd, name: os.mknod(name, mode, os.makedev(*entry.device), dir_fd=fd))

    def _made(self, entry: Entry, make: Callable[[int, str], None]) -> None:
        self._anew(entry, make)
        fd, name = self._tree.parent(entry.path)
        uid, gid = self._owner(entry)
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        where = without_following(fd, name)
        if entry.kind is not Kind.SYMLINK:
            if self._is_heir(entry.path):
                _remove_xattr(where, ACL_NAMES[0])
            self._set_xattrs(where, entry)
            os.chmod(name, entry.mode, dir_fd=fd)  # it was made just now, and is no symlink
        else:
            self._set_xattrs(where, entry)
        os.utime(name, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _anew(self, entry: Entry, make: Callable[[int, str], T]) -> T:
        """Make it; what is in its place goes first, a whole directory if need be."""
        try:
            return make(*self._tree.parent(entry.path))
        except FileExistsError:
            self._tree.remove(entry.path)
            return make(*self._tree.parent(entry.path))

    # --- metadata ----------------------------------------------------------------------------------------------------

    def _owner(self, entry: Entry) -> tuple[int, int]:
        uid = entry.uid if "u" in entry.unmapped else self._ids.uid_to_host(entry.uid)
        gid = entry.gid if "g" in entry.unmapped else self._ids.gid_to_host(entry.gid)
        if uid is None or gid is None or entry.unmapped:
            self._note(f"{entry.path!r} keeps its owner {entry.uid}:{entry.gid}, which the container can't have")
        return entry.uid if uid is None else uid, entry.gid if gid is None else gid

    def _is_heir(self, path: str) -> bool:
        """Does what is made there inherit an ACL, which it then must lose? One look for each directory."""
        above = path.rpartition("/")[0]
        if self._heir_of[0] != above:
            self._heir_of = (above, _has_xattr(self._tree.directory(above), ACL_NAMES[1]))
        return self._heir_of[1]

    def _strip(self, fd: int, entry: Entry, wanted: set[str]) -> None:
        """Xattrs that the image's directory or an earlier pass had, and the source has not."""
        try:
            present = os.listxattr(fd)
        except OSError:
            return
        for name in present:
            if name not in wanted and _is_carried(name):
                _remove_xattr(fd, name)

    def _set_xattrs(self, where: int | str, entry: Entry) -> None:
        for name, value in entry.xattrs:
            if not _is_carried(name):
                self._note(f"the extended attribute {name!r} of {entry.path!r} is none that a container may bring")
                continue
            try:
                os.setxattr(where, name, xattr_to_host(name, value, self._ids), follow_symlinks=isinstance(where, int))
            except OSError as error:
                self._note(f"the extended attribute {name!r} of {entry.path!r} was not set: {error.strerror}")

    def _note(self, sentence: str) -> None:
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(sentence)


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _is_carried(name: str) -> bool:
    return name in _XATTR_NAMES or name.startswith(_XATTR_SPACES)


def _has_xattr(fd: int, name: str) -> bool:
    try:
        return bool(os.getxattr(fd, name))
    except OSError:
        return False


def _remove_xattr(where: int | str, name: str) -> None:
    try:
        os.removexattr(where, name, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            raise
