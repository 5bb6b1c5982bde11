"""Neither big files nor many files nor deep trees cost more memory or time than they must."""

import os
import shutil
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest

from agent.prework import content, tree
from agent.prework.pack import length, pack
from agent.prework.tar import Entry, Kind, Limits, TarReader
from agent.prework.tree import Index, Source, scan
from agent.prework.unpack import apply
from tests.unit import two_folders
from tests.unit.test_prework_support import applied, assert_same, packed, written

source = pytest.fixture(two_folders.source)
target = pytest.fixture(two_folders.target)

MIB = 1 << 20


def test_big_and_sparse_files_pass_through_little_memory(source: Path, target: Path) -> None:
    block = os.urandom(MIB)
    with (source / "random").open("wb") as file:
        for _ in range(60):
            file.write(block)
    with (source / "sparse").open("wb") as file:
        for number in range(60):
            file.seek(2 * number * MIB)
            file.write(block)
    chunks = []
    pack(Source(str(source)), chunks.append)
    tracemalloc.start()
    pack(Source(str(source)), lambda chunk: None)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.reset_peak()
    stream = iter(chunks)
    apply(str(target), lambda _: next(stream, b""))
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()
    assert_same(source, target)


def test_index_of_many_files_is_small() -> None:
    tracemalloc.start()
    index = Index()
    for number in range(100_000):
        index.put(f"some/directory-{number // 20}/file-with-a-name-{number}", tree.record_of(os.stat("/")))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(index) == 100_000
    assert size < 40 * MIB


def test_many_members_leave_nothing_behind_in_reader_and_writer() -> None:
    def stream() -> Iterator[bytes]:
        yield written([])[:-1024]
        one = written([(Entry(Kind.DIR, "some/path", mode=0o755, xattrs=(("user.x", b"y" * 100),)), b"")])
        body = one[len(written([])) - 1024 : -1024]
        for _ in range(200):
            yield body * 100
        yield bytes(1024)

    chunks = stream()
    tracemalloc.start()
    count = sum(1 for _ in TarReader(lambda _: next(chunks, b""), Limits()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2 * MIB


def test_scan_estimates_without_reading(source: Path) -> None:
    (source / "dir").mkdir()
    (source / "dir/file").write_bytes(bytes(100_000))
    with (source / "hole").open("wb") as file:
        file.truncate(1 << 30)
    index = scan(Source(str(source)))
    assert len(index) == 4
    assert index.data_bytes == 100_000


def test_a_length_is_told_without_reading(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files with and without holes, large, empty, of two names; of links, folders and what is no file."""
    (source / "dir").mkdir()
    (source / "dir" / ("n" * 200)).write_text("long name")
    (source / "dir/link").symlink_to("nowhere")
    (source / "large").write_bytes(os.urandom(5 * MIB + 1))
    (source / "empty").touch()
    os.link(source / "large", source / "second-name")
    os.mkfifo(source / "fifo")
    with (source / "holes").open("wb") as file:
        for at in (0, 3 * MIB, 1 << 30):
            file.seek(at)
            file.write(b"data")
        file.truncate(2 << 30)
    stream, _ = packed(Source(str(source)), live=False)

    def read(*_: object) -> Never:
        raise AssertionError("a file is read")

    monkeypatch.setattr(content, "read", read)
    assert length(Source(str(source))) == len(stream)


def test_tree_deeper_than_descriptors_and_recursion_allow(source: Path, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    stream, first = packed(Source(str(source)))
    summary = applied(target, stream)
    assert summary.entries == 1502
    shutil.move(source / "d", source / "e")
    stream, last = packed(Source(str(source)), first.index, live=False)
    assert applied(target, stream).removed == 1
    assert last.entries == 1503
    assert not (target / "d").exists()
    for root in (source, target):
        subprocess.run(["rm", "-rf", str(root)], check=True)


def test_speed_is_not_lost_on_small_files(source: Path, target: Path) -> None:
    """A loose bound: some 0.1 ms for a file and pass, on any machine."""
    for number in range(2000):
        (source / f"f{number}").write_bytes(b"x" * 2000)
    start = time.process_time()
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert time.process_time() - start < 2
