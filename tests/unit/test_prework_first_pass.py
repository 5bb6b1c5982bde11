"""The first pass reads a tree that others write to: nothing breaks the stream, nothing is missed by the next pass."""

import mmap
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from agent.prework import content, tree
from agent.prework.pack import pack
from agent.prework.tar import Entry, Kind, Limits, TarReader, TarWriter
from agent.prework.tree import Index, Source, scan
from agent.prework.unpack import apply
from tests.unit.test_prework_support import (
    applied,
    assert_same,
    is_root,
    let_the_clock_tick,
    overlays,
    packed,
    reader,
    written,
)

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def both_passes(source: Path, target: Path, between: Callable[[], object]) -> int:
    stream, first = packed(Source(str(source)))
    applied(target, stream)
    between()
    stream, last = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)
    return last.entries


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_change_in_the_same_tick_of_the_clock_is_seen(source: Path, target: Path) -> None:
    """What changed just before it was read counts as changed, though its ctime is the same afterwards."""
    (source / "file").write_text("one")
    _, first = packed(Source(str(source)))
    assert first.index.children("")["file"][-1] & tree.RACY
    _, second = packed(Source(str(source)), first.index)
    assert second.entries == 2  # the file, and the directory that it disturbs


def test_old_files_are_not_sent_twice(source: Path, target: Path) -> None:
    (source / "file").write_text("one")
    let_the_clock_tick()
    assert both_passes(source, target, lambda: None) == 0


def test_whole_second_timestamps_are_racy_for_longer(source: Path) -> None:
    now = 1_700_000_000_000_000_000
    found = os.stat_result((0o100644, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, now, now, now))
    assert tree.is_racy(found, now + 1_900_000_000)
    assert not tree.is_racy(found, now + 2_100_000_000)


def test_clock_set_back_makes_everything_racy(source: Path) -> None:
    (source / "file").touch()
    found = (source / "file").stat()
    assert tree.is_racy(found, found.st_ctime_ns - 3600 * 10**9)


STORE = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
area = mmap.mmap(fd, 4096)
for line in sys.stdin:
    area[100:105] = line.strip().encode()
    print("stored", flush=True)
"""


class Storer:
    """A process that stores into one page of a file, through a shared mapping, when it is told to."""

    def __init__(self, path: Path) -> None:
        argv = [sys.executable, "-c", STORE, str(path)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def store(self, text: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "stored\n"

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def storer(source: Path) -> Iterator[Storer]:
    (source / "mapped").write_bytes(bytes(8192))
    if not tree.ctime_is_trusted(str(source)):
        pytest.skip("this file system does not see stores through mappings")
    storer = Storer(source / "mapped")
    yield storer
    storer.end()


def test_store_through_a_mapping_is_seen_after_the_first_pass(source: Path, target: Path, storer: Storer) -> None:
    storer.store("AAAAA")
    let_the_clock_tick()
    both_passes(source, target, lambda: storer.store("BBBBB"))
    assert (target / "mapped").read_bytes()[100:105] == b"BBBBB"


def test_without_writing_pages_out_that_store_would_be_missed(
    source: Path, target: Path, storer: Storer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why `write_out` is there: without it the page is still dirty, the second store faults nowhere."""
    monkeypatch.setattr(content, "write_out", lambda *_, **__: None)
    storer.store("AAAAA")
    let_the_clock_tick()
    _, first = packed(Source(str(source)))
    storer.store("BBBBB")
    _, last = packed(Source(str(source)), first.index, live=False)
    assert last.entries == 0


@pytest.mark.root
@pytest.mark.parametrize("options", ["", ",redirect_dir=on"])
def test_store_through_a_mapping_in_an_overlay_is_seen(tmp_path: Path, options: str) -> None:
    (tmp_path / "image/dir").mkdir(parents=True)
    (tmp_path / "image/dir/mapped").write_bytes(bytes(8192))
    with overlays(tmp_path, tmp_path / "image", options=options) as (here, there):
        if not tree.ctime_is_trusted(str(here.upper)):
            pytest.skip("this file system does not see stores through mappings")
        if options:
            (here.merged / "dir").rename(here.merged / "moved")
        name = "moved/mapped" if options else "dir/mapped"
        storer = Storer(here.merged / name)
        storer.store("AAAAA")
        let_the_clock_tick()
        source = here.source(merged=str(here.merged))
        stream, first = packed(source)
        applied(there.merged, stream)
        storer.store("BBBBB")
        stream, _ = packed(source, first.index, live=False)
        applied(there.merged, stream)
        storer.end()
        assert (there.merged / name).read_bytes()[100:105] == b"BBBBB"


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_on_tmpfs_every_file_is_sent_again() -> None:
    """There a store through a mapping never changes ctime."""
    root = Path(f"/dev/shm/transship-test-{os.getpid()}")
    root.mkdir()
    try:
        (root / "file").write_bytes(bytes(8192))
        let_the_clock_tick()
        _, first = packed(Source(str(root)))
        with (root / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            area[0:1] = b"x"
        _, last = packed(Source(str(root)), first.index, live=False)
        assert last.data_bytes == 8192
    finally:
        shutil.rmtree(root)


# --- a tree that does not stand still --------------------------------------------------------------------------------


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


# --- size ------------------------------------------------------------------------------------------------------------


def test_big_and_sparse_files_pass_through_little_memory(source: Path, target: Path) -> None:
    block = os.urandom(MIB)
    with (source / "random").open("wb") as file:
        for _ in range(150):
            file.write(block)
    with (source / "sparse").open("wb") as file:
        for number in range(150):
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


# --- others can read it ----------------------------------------------------------------------------------------------


def a_tree(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir/file").write_bytes(os.urandom(5000))
    (root / "dir/empty").touch()
    (root / ("n" * 200)).write_text("long name")
    (root / "dir/link").symlink_to("file")
    os.link(root / "dir/file", root / "hard")
    with (root / "sparse").open("wb") as file:
        for offset in (5 * MIB, 20 * MIB):
            file.seek(offset)
            file.write(os.urandom(5000))
        file.truncate(40 * MIB)
    os.setxattr(root / "dir/file", "user.with=sign%", b"value\n\0")
    os.utime(root / "dir/file", ns=(10**18, 10**18 + 987654321))


def test_gnu_tar_extracts_the_same(source: Path, target: Path) -> None:
    a_tree(source)
    stream, _ = packed(Source(str(source)))
    argv = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "-C", str(target), "-f", "-"]
    done = subprocess.run(argv, input=stream, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(source, target)


def test_python_reads_it(source: Path) -> None:
    a_tree(source)
    stream, _ = packed(Source(str(source)))
    with tarfile.open(fileobj=BytesIO(stream)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        inner = archive.extractfile("dir/file")
        assert inner is not None
        assert inner.read() == (source / "dir/file").read_bytes()
    assert set(members) == {".", "dir", "dir/file", "dir/empty", "dir/link", "hard", "n" * 200, "sparse"}
    assert members["sparse"].size == 40 * MIB


def test_more_than_8_gib_of_data_in_one_file() -> None:
    """The old header's field ends there. Only the header is written: the data would take too long."""
    size = 9 << 30
    entry = Entry(Kind.FILE, "big", size=size)
    chunks: list[bytes] = []
    out = TarWriter(chunks.append)
    out.begin(entry)
    out._flush()
    found = next(iter(TarReader(reader(b"".join(chunks)), Limits())))
    assert found.size == size
    with tarfile.open(fileobj=BytesIO(b"".join(chunks) + bytes(10240)), mode="r|") as archive:
        member = archive.next()
        assert member is not None
        assert member.size == size


@pytest.mark.skipif(not is_root(), reason="only root's files have an atime that we may keep")
def test_reading_leaves_atime_as_it_is(source: Path, target: Path) -> None:
    (source / "file").write_text("x")
    os.utime(source / "file", ns=(10**18, 10**18))
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert (source / "file").stat().st_atime_ns == 10**18
    assert (target / "file").stat().st_atime_ns == 10**18


def test_speed_is_not_lost_on_small_files(source: Path, target: Path) -> None:
    """A loose bound: some 0.1 ms for a file and pass, on any machine."""
    for number in range(2000):
        (source / f"f{number}").write_bytes(b"x" * 2000)
    start = time.process_time()
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert time.process_time() - start < 2
