"""A tree, or what changed in it since the last pass, into a stream.

The first pass runs beside the container and may see anything half done; the passes after it make that
good. A pass with `live=False` is the last: the container is frozen, the tree stands still.

In the order of the stream: a directory, what vanished from it, its files, then its directories. Where a
directory's content is touched, the directory comes along unchanged, because the target's mtime of it
would otherwise be that of the transfer.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.base.errors import StepFailed
from agent.prework import content, tree
from agent.prework.confined import Confined, without_following
from agent.prework.ids import xattr_to_container
from agent.prework.tar import Entry, Kind, TarWriter
from agent.prework.tree import FROM_MERGED, Child, Directory, Gone, Index, Source

MAX_XATTR_BYTES = 2 << 20
_MAX_NOTES = 100
_BELONGS_TO_THE_HOST = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
_SPECIAL = {stat.S_IFIFO: Kind.FIFO, stat.S_IFSOCK: Kind.SOCKET, stat.S_IFCHR: Kind.CHAR, stat.S_IFBLK: Kind.BLOCK}
_VANISHED = (FileNotFoundError, NotADirectoryError)
_NOT_A_FILE_NOW = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pass sent; `index` is what the next pass builds on."""

    index: Index
    entries: int
    removed: int
    data_bytes: int
    stream_bytes: int
    notes: tuple[str, ...]
    """What could not be sent as it is, one sentence each."""


def pack(
    source: Source,
    write: Callable[[bytes], None],
    previous: Index | None = None,
    *,
    live: bool | None = None,
    check: Callable[[], None] = lambda: None,
    measure: bool = False,
) -> Packed:
    """Send the tree, or with `previous` the difference. `check` is called now and then, and may raise to stop it.

    With `measure` no file is read: what is written is as long as the stream, and of no other use.
    """
    live = previous is None if live is None else live
    try:
        with Confined(source.merged or source.root) as merged:
            packer = _Packer(source, TarWriter(write), previous or Index(), live, merged, measure)
            for found in tree.walk(source, packer.previous):
                check()
                if isinstance(found, Gone):
                    packer.gone(found.path)
                else:
                    packer.directory(found)
            return packer.finish()
    except OSError as error:
        raise StepFailed(f"{source.root} can't be read: {error}") from error


def length(source: Source) -> int:
    """Of the stream of a tree that stands still, in bytes."""
    return pack(source, lambda chunk: None, live=False, measure=True).stream_bytes


@dataclass(slots=True)
class _Link:
    """The first name of an inode that has several."""

    path: str
    record: bytes
    sent: bool


class _Packer:
    def __init__(
        self, source: Source, out: TarWriter, previous: Index, live: bool, merged: Confined, measure: bool
    ) -> None:
        self.previous = previous
        self._merged = merged
        self._source = source
        self._out = out
        self._live = live
        self._measure = measure
        self._trusted = tree.ctime_is_trusted(source.root)
        self._index = Index()
        self._links: dict[int, _Link] = {}
        self._notes: list[str] = []
        self._removed = 0

    def finish(self) -> Packed:
        self._out.close()
        self._index.data_bytes = self._out.data_bytes
        for path, digests in self.previous.digests.items():
            if self._index.record(path) is self.previous.record(path):
                self._index.digests.setdefault(path, digests)
        return Packed(
            self._index,
            self._out.entries,
            self._removed,
            self._out.data_bytes,
            self._out.bytes_written,
            tuple(self._notes[:_MAX_NOTES]),
        )

    # --- directories -------------------------------------------------------------------------------------------------

    def directory(self, found: Directory) -> None:
        unchanged = found.known is not None and found.known == found.record
        touched = bool(found.removed) or any(self._to_send(found, child) for child in found.children)
        if not unchanged or touched or found.emptied:
            self._send_directory(found)
        else:
            assert found.known is not None
            self._index.put(found.path, found.known)
        self._index.keep(found.path, found.unchanged)
        prefix = f"{found.path}/" if found.path else ""
        for name in found.removed:
            self._remove(prefix + name)
        for child in found.children:
            # Asked again: a name of the same inode may have been sent meanwhile.
            if self._to_send(found, child):
                self._send(found, child, prefix + child.name)
            else:
                self._keep(found, child, prefix + child.name)
        if found.mount_point:
            self._note(f"{found.path!r} is a mount point: what is mounted there was not sent")

    def gone(self, path: str) -> None:
        if self.previous.record(path) is not None:
            self._remove(path)
            self._index.put(path, tree.UNSETTLED)

    def _send_directory(self, found: Directory) -> None:
        entry = self._entry(Kind.DIR, found.path, found.stat)
        entry.xattrs = self._xattrs(found.fd, found.path, found.record[-1])
        entry.opaque = found.emptied
        self._out.begin(entry)
        self._index.put(found.path, tree.settled(found.stat, found.looked_at_ns, found.record[-1]))

    def _remove(self, path: str) -> None:
        self._out.begin(Entry(Kind.REMOVE, path))
        self._removed += 1

    # --- everything else ---------------------------------------------------------------------------------------------

    def _to_send(self, found: Directory, child: Child) -> bool:
        if found.before.get(child.name) != child.record:
            return True
        if child.stat.st_nlink < 2 or child.record == tree.WHITEOUT:
            return False
        # Its first name is sent anew, and is another inode there from now on.
        link = self._links.get(child.stat.st_ino)
        return link is not None and link.sent

    def _keep(self, found: Directory, child: Child, path: str) -> None:
        self._index.put(path, found.before[child.name])
        if child.stat.st_nlink > 1 and child.record != tree.WHITEOUT:
            self._links.setdefault(child.stat.st_ino, _Link(path, child.record, sent=False))

    def _send(self, found: Directory, child: Child, path: str) -> None:
        if child.record == tree.WHITEOUT:
            self._remove(path)
            self._index.put(path, tree.WHITEOUT)
            return
        if child.stat.st_nlink > 1 and self._send_link(child, path):
            return
        try:
            record = self._send_new(found, child, path)
        except _VANISHED:
            record = None
        if record is None:
            self._vanished(found, child, path)
            return
        self._index.put(path, record)
        if child.stat.st_nlink > 1:
            self._links.setdefault(child.stat.st_ino, _Link(path, record, sent=True))

    def _send_link(self, child: Child, path: str) -> bool:
        """Only if the inode is still what it was under its first name: numbers are used again."""
        link = self._links.get(child.stat.st_ino)
        if link is None or link.record[:-1] != child.record[:-1]:
            return False
        entry = Entry(Kind.HARDLINK, path, link=link.path)
        self._out.begin(entry)
        self._index.put(path, link.record)
        return True

    def _send_new(self, found: Directory, child: Child, path: str) -> bytes | None:
        if stat.S_ISREG(child.stat.st_mode):
            return self._send_file(found, child, path)
        if stat.S_ISLNK(child.stat.st_mode):
            entry = self._entry(Kind.SYMLINK, path, child.stat)
            entry.link = os.readlink(child.name, dir_fd=found.fd)
        else:
            entry = self._entry(_SPECIAL[stat.S_IFMT(child.stat.st_mode)], path, child.stat)
            if entry.kind in (Kind.CHAR, Kind.BLOCK):
                entry.device = (os.major(child.stat.st_rdev), os.minor(child.stat.st_rdev))
        entry.xattrs = self._xattrs(without_following(found.fd, child.name), path, found.record[-1])
        self._out.begin(entry)
        return tree.settled(child.stat, found.looked_at_ns)

    def _vanished(self, found: Directory, child: Child, path: str) -> None:
        """Gone, or something else, since it was listed. If the target has it, it must not stay there for good."""
        if child.name in found.before:
            self._remove(path)
            self._index.put(path, tree.UNSETTLED)

    # --- files -------------------------------------------------------------------------------------------------------

    def _send_file(self, found: Directory, child: Child, path: str) -> bytes | None:
        try:
            fd = content.open_quietly(child.name, found.fd)
        except OSError as error:
            if error.errno in _NOT_A_FILE_NOW:
                return None
            raise
        try:
            return self._send_open_file(found, fd, path)
        finally:
            os.close(fd)

    def _send_open_file(self, found: Directory, fd: int, path: str) -> bytes | None:
        now = time.time_ns()
        state = os.fstat(fd)
        marks = found.record[-1]
        if not stat.S_ISREG(state.st_mode) or (marks & FROM_MERGED and self._is_mounted_over(fd)):
            return None
        if self._live:
            # After fstat: a store between the two is either seen by ctime or written out here, before we read.
            content.write_out(fd, through_overlay=bool(marks & FROM_MERGED))
        entry = self._entry(Kind.FILE, path, state)
        entry.xattrs = self._xattrs(fd, path, marks)
        if self._source.layer and not marks & FROM_MERGED and self._is_metacopy(fd):
            fd = self._open_merged(path)
            try:
                self._send_content(entry, fd, found, state.st_size)
            finally:
                os.close(fd)
        else:
            self._send_content(entry, fd, found, state.st_size)
        return tree.settled(state, now, trusted=self._trusted)

    def _send_content(self, entry: Entry, fd: int, found: Directory, size: int) -> None:
        """As many bytes as the index says, though it may have grown meanwhile: a patch goes by what was sent."""
        state = os.fstat(fd)
        entry.size = size
        entry.extents = content.extents_of(fd, state, size)
        if self._measure:
            content.promise(self._out, entry)
            return
        before = self._patchable(entry, found, state)
        if before is not None:
            digests = content.send_patch(self._out, entry, fd, self.previous.digests[entry.path], before)
        else:
            remember = self._live and entry.size >= content.WORTH_A_PATCH
            digests = content.send(self._out, entry, fd, remember=remember)
        if digests is not None and self._live:
            self._index.digests[entry.path] = digests

    def _patchable(self, entry: Entry, found: Directory, state: os.stat_result) -> int | None:
        """The size of what the target has, if it is this very file and pieces of it are known."""
        if entry.extents is not None or entry.path not in self.previous.digests:
            return None
        sent = found.before.get(entry.path.rpartition("/")[2])
        return tree.size_if_same_inode(sent, state) if sent else None

    def _open_merged(self, path: str) -> int:
        if self._source.merged is None:
            raise tree.needs_merged(path)
        directory, name = self._merged.parent(path)
        return content.open_quietly(name, directory)

    # --- what all have in common -------------------------------------------------------------------------------------

    def _entry(self, kind: Kind, path: str, found: os.stat_result) -> Entry:
        ids = self._source.ids
        uid, gid = ids.uid_to_container(found.st_uid), ids.gid_to_container(found.st_gid)
        unmapped = ("u" if uid is None else "") + ("g" if gid is None else "")
        if unmapped:
            self._note(f"{path!r} belongs to {found.st_uid}:{found.st_gid}, which the container can't have")
        return Entry(
            kind,
            path,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid if uid is None else uid,
            gid=found.st_gid if gid is None else gid,
            mtime_ns=found.st_mtime_ns,
            atime_ns=found.st_atime_ns,
            unmapped=unmapped,
        )

    def _xattrs(self, where: str | int, path: str, marks: int) -> tuple[tuple[str, bytes], ...]:
        layer = self._source.layer and not marks & FROM_MERGED
        kept = []
        for name in _listxattr(where):
            carried = self._seen_inside(name) if layer else name
            if carried is None or name in _BELONGS_TO_THE_HOST:
                continue
            try:
                value = os.getxattr(where, name, follow_symlinks=isinstance(where, int))
            except OSError as error:
                if error.errno == errno.ENODATA:  # removed since it was listed
                    continue
                raise
            kept.append((carried, xattr_to_container(name, value, self._source.ids)))
        if sum(len(name) + len(value) for name, value in kept) > MAX_XATTR_BYTES:
            raise StepFailed(f"{path!r} has more than {MAX_XATTR_BYTES >> 20} MiB of extended attributes")
        return tuple(kept)

    def _is_mounted_over(self, fd: int) -> bool:
        """Is it another file, which a bind mount shows in the merged view?"""
        return tree.mount_id(fd) != tree.mount_id(self._merged.directory(""))

    def _is_metacopy(self, fd: int) -> bool:
        """Only its metadata was copied up; the bytes are still in the image."""
        return any(self._source.overlay_name(xattr) == "metacopy" for xattr in _listxattr(fd))

    def _seen_inside(self, xattr: str) -> str | None:
        """The name the container knows: the driver hides its own, and escapes those of an overlay in the container."""
        name = self._source.overlay_name(xattr)
        if name is None:
            return xattr
        return xattr.removesuffix(name) + name.removeprefix("overlay.") if name.startswith("overlay.") else None

    def _note(self, sentence: str) -> None:
        if len(self._notes) < _MAX_NOTES:
            self._notes.append(sentence)


def _listxattr(where: str | int) -> list[str]:
    try:
        return os.listxattr(where, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # the file system has none
            return []
        raise
