"""What changed after a file was read is seen by the next pass, however coarse the clock and quiet the write."""

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.prework import content, tree
from agent.prework.tree import Source
from tests.unit import two_folders
from tests.unit.test_prework_support import applied, assert_same, copies, let_the_clock_tick, overlays, packed

source = pytest.fixture(two_folders.source)
target = pytest.fixture(two_folders.target)


def both_passes(source: Path, target: Path, between: Callable[[], object]) -> int:
    stream, first = packed(Source(str(source)))
    applied(target, stream)
    between()
    stream, last = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)
    return last.entries


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


ATTEMPTS = 20


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
    """Why `write_out` is there: without it the page is still dirty, the second store faults nowhere.

    Unless the kernel writes it out by itself just then, which it does every few seconds.
    """
    monkeypatch.setattr(content, "write_out", lambda *_, **__: None)
    found = []
    while 0 not in found and len(found) < ATTEMPTS:
        storer.store("AAAAA")
        let_the_clock_tick()
        _, first = packed(Source(str(source)))
        storer.store("BBBBB")
        _, last = packed(Source(str(source)), first.index, live=False)
        found.append(last.entries)
    assert 0 in found


@pytest.mark.root
@pytest.mark.parametrize("options", ["", ",redirect_dir=on"])
def test_store_through_a_mapping_in_an_overlay_is_seen(tmp_path: Path, options: str) -> None:
    (tmp_path / "image/dir").mkdir(parents=True)
    (tmp_path / "image/dir/mapped").write_bytes(bytes(8192))
    with overlays(tmp_path, copies(tmp_path / "image"), options=options) as (here, there):
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
