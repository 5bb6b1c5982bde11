"""What is in a container's tmpfs, packed and unpacked beside CRIU, which would start `tar` and `gzip` for each.

A container of Docker's has four: /dev, /dev/shm, the one that hides parts of /proc and /sys, and cgroup v1's folder.
CRIU starts two programs and a shell for each, at the dump and at the restore, with the tasks frozen. A script that it
finds as `tar` has what is small ready instead: on the source an archive that this agent has made since the freeze, on
the target one that it has taken out of gzip already. Whatever is not ready, large or of a rare kind is left to GNU
`tar`: so the script may fail to find anything at any time.
"""

import contextlib
import ctypes
import io
import os
import stat
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

SCRIPTS, READY = "tools", "contents"
"""Folders: of what CRIU finds as `tar`, and of what that has ready, by the names of the images."""
MOST_ENTRIES = 256
MOST_BYTES = 256 << 10
"""Of the files in one tmpfs; more is rather packed by another process."""
IDENTITY = ["0", "0", "4294967295"]
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
OPEN_TREE, OPEN_TREE_CLONE, AT_FDCWD = 428, 1, -100
ROOT_INODE = 1
"""Of a tmpfs, since Linux 5.9 (mm/shmem.c); an older one is left to GNU tar."""
LEVEL = 1
GZIP = 31
"""zlib's word for gzip's head and tail."""

# The last is the usual `tar`. With userns-remap the container's own root can't even look here, and finds that at once.
PACK = """\
#!/bin/sh
for made in {ready}/*.img; do
    [ /proc/self/fd/1 -ef {images}/"${{made##*/}}" ] && exec cat "$made"
done
PATH=${{PATH#*:}}
exec tar "$@"
"""
UNPACK = """\
#!/bin/sh
PATH=${{PATH#*:}}
[ "$1 $2" = "--extract --gzip" ] || exec tar "$@"
for plain in {ready}/*.img; do
    if [ /proc/self/fd/0 -ef {images}/"${{plain##*/}}" ]; then
        shift 2
        exec tar --extract "$@" <"$plain"
    fi
done
exec tar "$@"
"""


class TooMuch(Exception):
    """It is left to GNU tar."""


class Contents:
    """The tmpfs of one container, seen without what is mounted in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._views: dict[str, int] = {}

    def lay_out(self, images: Path) -> None:
        """The script; it works without anything else."""
        put_script(self._folder, PACK, images)

    @property
    def path(self) -> str:
        """Where programs are found, by a CRIU that is to find this script."""
        return path_with(self._folder)

    def look(self, pid: int) -> None:
        """While it runs: open each tmpfs that a process has mounted; blocks for a moment."""
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/uid_map").read_text().split() == IDENTITY:
                self._views = _views(pid)

    def pack(self) -> None:
        """Frozen: have the archives ready. Blocks for some milliseconds; what fails is left to GNU tar."""
        try:
            for name, view in self._views.items():
                with contextlib.suppress(OSError, TooMuch):
                    _put(self._folder / READY / name, packed(view))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of them."""
        for view in self._views.values():
            os.close(view)
        self._views = {}


def put_script(folder: Path, text: str, images: Path) -> None:
    """Lay out what CRIU is to find as `tar`."""
    for name in (SCRIPTS, READY):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    script = folder / SCRIPTS / "tar"
    script.write_text(text.format(ready=folder / READY, images=images))
    script.chmod(0o700)


def path_with(folder: Path) -> str:
    return f"{folder / SCRIPTS}:{os.environ.get('PATH') or os.defpath}"


def unpack(folder: Path, images: Path) -> None:
    """Take what is small out of gzip, for the script in `folder`; blocks for some microseconds each."""
    for image in images.glob("tmpfs-dev-*.tar.gz.img"):
        with contextlib.suppress(OSError, zlib.error):
            if image.stat().st_size <= MOST_BYTES:
                unzip = zlib.decompressobj(GZIP)
                plain = unzip.decompress(image.read_bytes(), 2 * MOST_BYTES)
                if unzip.eof and not unzip.unused_data:
                    _put(folder / READY / image.name, plain)


def packed(view: int) -> bytes:
    """The archive that `tar --create --gzip` makes of an open folder, as CRIU calls that: no extended attributes.

    Raises:
        TooMuch: it has too much in it, or what is packed by more than its name.

    """
    plain, entries, size = io.BytesIO(), 0, 0
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for top, folders, files, fd in os.fwalk(".", dir_fd=view):
            for name in [".", *files, *(each for each in folders if _is_link(fd, each))]:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISSOCK(found.st_mode):
                    continue  # GNU tar leaves it out as well; CRIU makes those that are bound anew
                entries, size = entries + 1, size + found.st_size * stat.S_ISREG(found.st_mode)
                if entries > MOST_ENTRIES or size > MOST_BYTES:
                    raise TooMuch
                _add(archive, top if name == "." else f"{top}/{name}", name, found, fd)
    zipped = zlib.compressobj(LEVEL, wbits=GZIP)
    return zipped.compress(plain.getvalue()) + zipped.flush()


def _is_link(fd: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)


def _add(archive: tarfile.TarFile, path: str, name: str, found: os.stat_result, fd: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
    entry.mtime = int(found.st_mtime)
    match stat.S_IFMT(found.st_mode):
        case stat.S_IFDIR:
            entry.type = tarfile.DIRTYPE
        case stat.S_IFLNK:
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=fd)
        case stat.S_IFIFO:
            entry.type = tarfile.FIFOTYPE
        case stat.S_IFCHR | stat.S_IFBLK as kind:
            entry.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        case _:
            if found.st_nlink > 1 or found.st_blocks * 512 < found.st_size:
                raise TooMuch  # hard links and holes
            entry.size = found.st_size
            with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb") as content:
                archive.addfile(entry, content)
            return
    archive.addfile(entry)


def _put(path: Path, content: bytes) -> None:
    """All of it or nothing: CRIU may look at any time."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.rename(path)


def _views(pid: int) -> dict[str, int]:
    """An open folder for each, by the name that its image will have (criu/image-desc.c, criu/filesystems.c)."""
    places = _places(pid)  # before: among its mounts /proc is the container's
    trees: list[int] = []
    _within(pid, lambda: trees.extend(map(_alone, places)))
    views: dict[str, int] = {}
    for tree in trees:
        with contextlib.suppress(OSError):
            view = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
            found = os.fstat(view)
            name = f"tmpfs-dev-{os.major(found.st_dev) << 20 | os.minor(found.st_dev)}.tar.gz.img"
            if found.st_ino != ROOT_INODE or views.setdefault(name, view) != view:
                os.close(view)
        os.close(tree)
    return views


def _places(pid: int) -> list[str]:
    """Where a tmpfs is mounted whole; a name that is written in an odd way is left to CRIU."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        words, _, what = line.partition(" - ")
        root, place = words.split()[3:5]
        if what.startswith("tmpfs ") and root == "/" and "\\" not in place:
            found.append(place)
    return found


def _within(pid: int, work: Callable[[], None]) -> None:
    """Do it among the mounts of a process: by a thread that ends with it, and has its own from the start."""

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.unshare(CLONE_FS) == 0 and libc.setns(fd, CLONE_NEWNS) == 0:
                    work()
            finally:
                os.close(fd)

    thread = threading.Thread(target=run, name=f"among the mounts of {pid}")
    thread.start()
    thread.join()


def _alone(place: str) -> int:
    """A mount of its own, of nobody's, that shows a folder as it is below whatever is mounted in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    tree = int(libc.syscall(OPEN_TREE, AT_FDCWD, os.fsencode(place), OPEN_TREE_CLONE | os.O_CLOEXEC))
    if tree < 0:
        raise OSError(ctypes.get_errno(), "open_tree")
    return tree
