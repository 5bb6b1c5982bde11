"""What the tests of the room `prework` share: pictures of trees, overlays, streams in memory. No tests."""

import ctypes
import hashlib
import os
import stat
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.prework.ids import IdMap, IdRange
from agent.prework.pack import Packed, pack
from agent.prework.tar import Entry, Limits, TarWriter
from agent.prework.tree import Index, Source
from agent.prework.unpack import Summary, apply

_libc = ctypes.CDLL(None, use_errno=True)


def is_root() -> bool:
    return os.geteuid() == 0


def let_the_clock_tick() -> None:
    """Afterwards nothing that was done before is racy any more: without it every delta would be everything."""
    time.sleep(0.025)


def reader(stream: bytes, step: int = 1 << 20) -> Callable[[int], bytes]:
    chunks = iter([stream[i : i + step] for i in range(0, len(stream), step)])
    return lambda _: next(chunks, b"")


def packed(source: Source, previous: Index | None = None, **options: Any) -> tuple[bytes, Packed]:
    chunks: list[bytes] = []
    result = pack(source, chunks.append, previous, **options)
    stream = b"".join(chunks)
    assert result.stream_bytes == len(stream)
    return stream, result


def own_ids() -> IdMap | None:
    """For whoever is not root: root's files, as streams made by hand have them, become one's own."""
    if is_root():
        return None
    uid, gid = os.geteuid(), os.getegid()
    return IdMap((IdRange(0, uid, 1), IdRange(uid, uid, 1)), (IdRange(0, gid, 1), IdRange(gid, gid, 1)))


def applied(root: Path, stream: bytes, *, ids: IdMap | None = None, devices: bool = True, **options: Any) -> Summary:
    ids = ids or own_ids()
    return apply(str(root), reader(stream), ids=ids, devices=devices, **options)


def written(entries: Iterable[tuple[Entry, bytes]]) -> bytes:
    """A stream made by hand."""
    chunks: list[bytes] = []
    out = TarWriter(chunks.append)
    for entry, data in entries:
        out.begin(entry)
        if data:
            out.data(data)
    out.close()
    return b"".join(chunks)


SMALL = Limits(entries=1000, data_bytes=64 << 20, file_size=64 << 20, header_bytes=64 << 10)


# --- pictures --------------------------------------------------------------------------------------------------------


def extents(path: str, size: int) -> list[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY)
    found = []
    try:
        end = 0
        while end < size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, end))
    finally:
        os.close(fd)
    return found


def _digest(path: str, size: int) -> str:
    """Of the data only: a file of holes may be bigger than memory, and where they are is compared too."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for start, end in extents(path, size):
            file.seek(start)
            digest.update(file.read(end - start))
    return digest.hexdigest()


def _xattrs(path: str) -> list[tuple[str, bytes]]:
    names = [n for n in os.listxattr(path, follow_symlinks=False) if not n.startswith("trusted.overlay.")]
    return sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in names if n != "security.selinux")


def picture(root: Path | str) -> dict[str, tuple[Any, ...]]:
    """All of a tree that a container could tell apart, atime and ctime excepted."""
    root = str(root)
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    pending = [root]
    while pending:
        path = pending.pop()
        st = os.lstat(path)
        kind = stat.S_IFMT(st.st_mode)
        content: Any = None
        if kind == stat.S_IFDIR:
            pending.extend(f"{path}/{name}" for name in os.listdir(path))
        elif kind == stat.S_IFREG:
            content = (st.st_size, _digest(path, st.st_size), extents(path, st.st_size))
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = st.st_rdev
        relative = path[len(root) + 1 :]
        if kind != stat.S_IFDIR and st.st_nlink > 1:
            names[st.st_dev, st.st_ino].append(relative)
        found[relative] = (oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, content, _xattrs(path))
    groups = {name: sorted(group) for group in names.values() for name in group}
    return {path: (*what, groups.get(path, [])) for path, what in sorted(found.items())}


def assert_same(one: Path | str, other: Path | str) -> None:
    first, second = picture(one), picture(other)
    assert first.keys() == second.keys()
    for path, what in first.items():
        assert second[path] == what, path


# --- overlays --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    upper: Path
    merged: Path

    def source(self, **options: Any) -> Source:
        return Source(str(self.upper), layer=True, **options)


def _mount(lower: Path, base: Path, options: str) -> Overlay:
    upper, work, merged = (base / name for name in ("upper", "work", "merged"))
    for each in (upper, work, merged):
        each.mkdir(parents=True)
    data = f"lowerdir={lower},upperdir={upper},workdir={work}{options}"
    argv = ["mount", "-t", "overlay", "overlay", "-o", data, str(merged)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    return Overlay(upper, merged)


def copies(lower: Path, count: int = 2) -> list[Path]:
    """The same image on several hosts, as it were. Nothing that is mounted over it changes it."""
    made = [lower.with_name(f"{lower.name}-{number}") for number in range(count)]
    for each in made:
        subprocess.run(["cp", "-a", str(lower), str(each)], check=True)
    return made


@contextmanager
def overlays(base: Path, images: Iterable[Path], options: str = "") -> Iterator[list[Overlay]]:
    """Each of an image's copies mounted, as on a host of its own; the first one with these options."""
    if not is_root():
        pytest.skip("needs root")
    mounted: list[Overlay] = []
    try:
        for number, copy in enumerate(images):
            mounted.append(_mount(copy, base / f"host-{number}", options if number == 0 else ""))
        yield mounted
    finally:
        for overlay in mounted:
            subprocess.run(["umount", str(overlay.merged)], check=True)


def exchange(one: str, other: str) -> None:
    """renameat2 with RENAME_EXCHANGE: two names change places in one step."""
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")
