"""The stream is a tar that other programs read."""

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from agent.prework.tar import Entry, Kind, Limits, TarReader, TarWriter
from agent.prework.tree import Source
from tests.unit import two_folders
from tests.unit.test_prework_support import assert_same, packed, reader

source = pytest.fixture(two_folders.source)
target = pytest.fixture(two_folders.target)

MIB = 1 << 20


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
