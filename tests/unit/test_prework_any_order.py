"""Any changes in any order, drawn by chance, arrive."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.prework.tree import Source
from tests.unit.test_prework_support import (
    applied,
    assert_same,
    copies,
    exchange,
    let_the_clock_tick,
    overlays,
    packed,
    picture,
)

MIB = 1 << 20
pytestmark = pytest.mark.root
NAMES = ["a", "b", "c"]
BELOW = [f"{x}/{y}" for x in NAMES for y in NAMES]
PATHS = [*NAMES, *BELOW, *(f"{path}/{z}" for path in BELOW for z in "ab")]
path_of = st.sampled_from(PATHS)


def _open(path: Path) -> int:
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "not a file")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def write_at(path: Path, *pieces: tuple[int, bytes], size: int | None = None) -> None:
    fd = _open(path)
    try:
        for offset, data in pieces:
            os.pwrite(fd, data, os.fstat(fd).st_size if offset < 0 else offset)
        if size is not None:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_xattrs(path: Path) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        os.removexattr(path, name, follow_symlinks=False)


OPERATIONS: dict[str, Callable[[Path, int], object]] = {
    "write": lambda p, n: write_at(p, (0, b"w" * n * 3000), size=n * 3000),
    "grow": lambda p, n: write_at(p, (-1, os.urandom(n * 1000))),
    "big": lambda p, n: write_at(p, (0, os.urandom(4 * MIB + n))),
    "poke": lambda p, n: write_at(p, (n << 18, b"poked")),
    "hole": lambda p, n: write_at(p, (n << 18, b"x"), size=(n + 1) << 18),
    "mkdir": lambda p, n: p.mkdir(),
    "remove": lambda p, n: remove(p),
    "chmod": lambda p, n: p.chmod(0o400 | n * 0o123),
    "chown": lambda p, n: os.chown(p, n, n + 1, follow_symlinks=False),
    "xattr": lambda p, n: os.setxattr(p, f"trusted.n{n % 3}", b"v" * n, follow_symlinks=False),
    "unxattr": lambda p, n: remove_xattrs(p),
    "utime": lambda p, n: os.utime(p, ns=(n, n << 50), follow_symlinks=False),
    "fifo": lambda p, n: os.mkfifo(p),
}
PAIRED: dict[str, Callable[[Path, Path], object]] = {
    "rename": lambda p, q: p.rename(q),
    "exchange": lambda p, q: exchange(str(p), str(q)),
    "link": lambda p, q: os.link(p, q, follow_symlinks=False),
    "symlink": lambda p, q: q.symlink_to(p.name),
}
IMPOSSIBLE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EXDEV}
IMPOSSIBLE |= {errno.EPERM, errno.ELOOP, errno.ENODATA, errno.EBUSY, errno.EOPNOTSUPP, errno.ENXIO}
operation = st.one_of(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), path_of, st.integers(0, 17)),
    st.tuples(st.sampled_from(sorted(PAIRED)), path_of, path_of),
)


def perform(root: Path, what: str, path: str, value: int | str) -> None:
    try:
        if isinstance(value, int):
            OPERATIONS[what](root / path, value)
        else:
            PAIRED[what](root / path, root / value)
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise


def image_of_names(root: Path) -> None:
    for path in ("a/a", "a/b", "b/c"):
        (root / path).mkdir(parents=True)
    for path in ("c", "a/c", "a/a/a", "a/b/b", "b/c/a"):
        (root / path).write_text(path)
    os.link(root / "c", root / "b/a")


rounds = st.lists(st.lists(operation, max_size=12), min_size=2, max_size=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    lower = tmp_path_factory.mktemp("images") / "image"
    lower.mkdir()
    image_of_names(lower)
    return copies(lower)


@given(rounds=rounds)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changes_in_any_order_through_overlays(
    tmp_path_factory: pytest.TempPathFactory, images: list[Path], rounds: list[list]
) -> None:
    with overlays(tmp_path_factory.mktemp("any"), images) as (here, there):
        _rounds(here.source(), here.merged, there.merged, rounds)


@given(rounds=rounds)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changes_in_any_order_in_a_volume(tmp_path_factory: pytest.TempPathFactory, rounds: list[list]) -> None:
    base = tmp_path_factory.mktemp("any")
    source, target = base / "source", base / "target"
    source.mkdir()
    target.mkdir()
    _rounds(Source(str(source)), source, target, rounds)


def _rounds(source: Source, here: Path, there: Path, rounds: list[list]) -> None:
    index = None
    for number, operations in enumerate(rounds):
        for what, path, value in operations:
            perform(here, what, path, value)
        let_the_clock_tick()
        live = number < len(rounds) - 1
        stream, result = packed(source, index, live=live)
        index = result.index
        applied(there, stream)
    assert_same(here, there)
    assert picture(there)
