"""The first pass reads a tree that others write to: nothing breaks the stream, nothing is missed by the next pass."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.prework.pack import pack
from agent.prework.tree import Index, Source
from tests.unit import two_folders
from tests.unit.test_prework_support import applied, assert_same, is_root, let_the_clock_tick, packed

source = pytest.fixture(two_folders.source)
target = pytest.fixture(two_folders.target)

MIB = 1 << 20


def interrupted(source: Path, at_byte: int, act: Callable[[], object], previous: Index | None = None) -> tuple:
    """Pack, and do something in the middle of it."""
    chunks: list[bytes] = []
    done = []

    def write(chunk: bytes) -> None:
        chunks.append(chunk)
        if not done and sum(map(len, chunks)) >= at_byte:
            done.append(act())

    result = pack(Source(str(source)), write, previous, live=True)
    assert done, "the stream was too short to interrupt it"
    return b"".join(chunks), result


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 5, 9 * MIB])
def test_file_that_changes_its_size_while_it_is_read(source: Path, target: Path, size: int) -> None:
    (source / "a").write_bytes(os.urandom(6 * MIB))
    (source / "b").write_text("after it")
    let_the_clock_tick()
    stream, first = interrupted(source, 2 * MIB, lambda: os.truncate(source / "a", size))
    applied(target, stream)
    assert (target / "a").stat().st_size == 6 * MIB
    stream, _ = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)


def test_file_that_grows_while_it_is_read_off_the_grid(source: Path, target: Path) -> None:
    with (source / "a").open("wb") as file:
        file.write(os.urandom(8 * MIB))
    let_the_clock_tick()

    def cut_and_grow() -> None:
        os.truncate(source / "a", 3 * MIB + 100)

    stream, first = interrupted(source, 2 * MIB, cut_and_grow)
    applied(target, stream)
    with (source / "a").open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(os.urandom(5 * MIB))
    let_the_clock_tick()
    stream, second = interrupted(source, 1, lambda: None, first.index)
    applied(target, stream)
    (source / "a").chmod(0o600)
    stream, _ = packed(Source(str(source)), second.index, live=False)
    applied(target, stream)
    assert_same(source, target)


def test_files_and_directories_that_vanish_while_the_tree_is_read(source: Path, target: Path) -> None:
    (source / "a").write_bytes(os.urandom(2 * MIB))
    for name in ("b", "c", "d/e", "f/g"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)

    def vanish() -> None:
        (source / "b").unlink()
        (source / "c").unlink()
        (source / "c").symlink_to("/etc/shadow")
        shutil.rmtree(source / "d")
        shutil.rmtree(source / "f")
        (source / "f").symlink_to("/etc")

    stream, first = interrupted(source, 1, vanish)
    applied(target, stream)
    assert sorted(os.listdir(target)) == ["a"]
    let_the_clock_tick()
    stream, _ = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)


def test_what_vanishes_during_a_second_pass_is_removed_by_it(source: Path, target: Path) -> None:
    (source / "a").write_bytes(os.urandom(2 * MIB))
    for name in ("b", "d/e"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    stream, first = packed(Source(str(source)))
    applied(target, stream)
    for name in ("a", "b"):
        (source / name).chmod(0o600)

    def vanish() -> None:
        (source / "b").unlink()
        shutil.rmtree(source / "d")

    let_the_clock_tick()
    stream, second = interrupted(source, 1, vanish, first.index)
    applied(target, stream)
    assert sorted(os.listdir(target)) == ["a"]
    stream, _ = packed(Source(str(source)), second.index, live=False)
    applied(target, stream)
    assert_same(source, target)


def test_directory_swapped_for_a_symlink_leads_nowhere(source: Path, tmp_path: Path) -> None:
    """A container may try to have us read the host's files."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the host's secret")
    (source / "a").write_bytes(os.urandom(2 * MIB))
    (source / "dir").mkdir()
    (source / "dir/key").write_text("mine")

    def swap() -> None:
        shutil.rmtree(source / "dir")
        (source / "dir").symlink_to(secret)

    stream, _ = interrupted(source, 1, swap)
    assert b"the host's secret" not in stream


def test_inode_number_used_again_is_no_hard_link(source: Path, target: Path) -> None:
    (source / "a-1").write_text("first")
    os.link(source / "a-1", source / "a-2")
    (source / "b").write_bytes(os.urandom(2 * MIB))
    number = (source / "a-1").stat().st_ino

    def use_again() -> None:
        (source / "a-1").unlink()
        (source / "a-2").unlink()
        for attempt in range(50):
            (source / f"c-{attempt}").write_text("another")
            if (source / f"c-{attempt}").stat().st_ino == number:
                os.link(source / f"c-{attempt}", source / "d")

    (source / "d").touch()
    (source / "d").unlink()
    stream, first = interrupted(source, 1, use_again)
    applied(target, stream)
    stream, _ = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)


def test_a_busy_tree_is_the_same_after_the_last_pass(source: Path, target: Path) -> None:
    """A writer that never rests; it rests only for the last pass, as a frozen container does."""
    ends = threading.Event()

    def work() -> None:
        turn = 0
        while not ends.is_set():
            turn += 1
            path = source / f"d{turn % 7}"
            path.mkdir(exist_ok=True)
            (path / f"f{turn % 11}").write_bytes(os.urandom(turn % 9000))
            if turn % 5 == 0:
                shutil.rmtree(source / f"d{(turn + 3) % 7}", ignore_errors=True)
            if turn % 3 == 0:
                shutil.move(path / f"f{turn % 11}", source / f"top{turn % 4}")

    writer = threading.Thread(target=work)
    writer.start()
    index: Index | None = None
    try:
        for _ in range(12):
            stream, result = packed(Source(str(source)), index, live=True)
            applied(target, stream)
            index = result.index
    finally:
        ends.set()
        writer.join()
    stream, _ = packed(Source(str(source)), index, live=False)
    applied(target, stream)
    assert_same(source, target)


@pytest.mark.skipif(not is_root(), reason="only root's files have an atime that we may keep")
def test_reading_leaves_atime_as_it_is(source: Path, target: Path) -> None:
    (source / "file").write_text("x")
    os.utime(source / "file", ns=(10**18, 10**18))
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert (source / "file").stat().st_atime_ns == 10**18
    assert (target / "file").stat().st_atime_ns == 10**18
