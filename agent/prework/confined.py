"""A directory tree that can't be left.

Every directory is opened component by component, from the root, without following a symlink: neither a
container that swaps a directory for a symlink while we read, nor a stream that was made to, gets us
anywhere else. Paths are relative, `/` between components, checked by whoever read them; "" is the root.
"""

import os
import stat
from collections import OrderedDict

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_OPEN = 128


class Confined:
    """Open directories below one root; the last few are kept open."""

    def __init__(self, root: str | int) -> None:
        self._root = os.dup(root) if isinstance(root, int) else os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> "Confined":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        if self._root >= 0:
            os.close(self._root)
        self._root = -1

    def directory(self, path: str) -> int:
        """A descriptor that is good until the next call; a symlink on the way is a NotADirectoryError."""
        if not path:
            return self._root
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        ancestor, missing = path, []
        while ancestor and ancestor not in self._open:
            ancestor, _, name = ancestor.rpartition("/")
            missing.append(name)
        fd = self._open[ancestor] if ancestor else self._root
        for name in reversed(missing):
            ancestor = f"{ancestor}/{name}" if ancestor else name
            fd = os.open(name, _DIRECTORY, dir_fd=fd)
            self._keep(ancestor, fd)
        return fd

    def parent(self, path: str) -> tuple[int, str]:
        """The directory that holds it, and its name there."""
        above, _, name = path.rpartition("/")
        return self.directory(above), name

    def forget(self, path: str) -> None:
        """What was there is about to be something else."""
        below = path + "/"
        for each in [p for p in self._open if p == path or p.startswith(below)]:
            os.close(self._open.pop(each))

    def remove(self, path: str) -> bool:
        """Make sure that nothing is there; was there something? A mount point's own root is only emptied."""
        if not path:
            self.empty("")
            return True
        try:
            fd, name = self.parent(path)
            os.unlink(name, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except IsADirectoryError:
            self._remove_tree(path)
        return True

    def empty(self, path: str) -> None:
        for name in names_in(self.directory(path)):
            self.remove(f"{path}/{name}" if path else name)

    def _remove_tree(self, path: str) -> None:
        """Deepest first, without recursion: a tree may be deeper than Python's stack or the number of descriptors."""
        pending = [path]
        while pending:
            here = pending[-1]
            fd = self.directory(here)
            below = []
            for name in names_in(fd):
                try:
                    os.unlink(name, dir_fd=fd)
                except IsADirectoryError:
                    below.append(f"{here}/{name}")
            pending.extend(below)
            if not below:
                self.forget(here)
                fd, name = self.parent(here)
                os.rmdir(name, dir_fd=fd)
                pending.pop()

    def _keep(self, path: str, fd: int) -> None:
        self._open[path] = fd
        if len(self._open) > _KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1])


def names_in(fd: int) -> list[str]:
    return os.listdir(fd)


def lstat_at(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_directory(found: os.stat_result | None) -> bool:
    return found is not None and stat.S_ISDIR(found.st_mode)


def without_following(fd: int, name: str) -> str:
    """A path for calls that know no dir_fd (xattrs): through /proc, the last component is not followed."""
    return f"/proc/self/fd/{fd}/{name}"
