"""What is in a tmpfs, packed beside CRIU: the same that GNU tar packs, and whatever is not ready is left to that."""

import io
import os
import shutil
import socket
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest

from agent.checkpoint import contents
from agent.checkpoint.contents import PACK, READY, SCRIPTS, UNPACK, TooMuch, packed, put_script, unpack

CREATE = ["--create", "--gzip", "--no-unquote", "--no-wildcards", "--one-file-system", "--check-links"]
CREATE += ["--preserve-permissions", "--sparse", "--numeric-owner", "--directory", "/proc/self/fd/0", "."]
EXTRACT = ["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"]
"""As criu/filesystems.c calls it."""


def pack(tree: Path) -> bytes:
    view = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return packed(view)
    finally:
        os.close(view)


def call(folder: Path, words: list[str], stdin: Path, stdout: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """As CRIU does: by its name, with the scripts' folder first."""
    given = os.open(stdin, os.O_RDONLY)
    command, path = ["env", "tar", *words], {**os.environ, "PATH": contents.path_with(folder)}
    try:
        with (stdout or Path(os.devnull)).open("wb") as out:
            return subprocess.run(
                command, stdin=given, stdout=out, stderr=subprocess.PIPE, env=path, check=False, text=True
            )
    finally:
        os.close(given)


def listed(archive: Path) -> list[str]:
    done = subprocess.run(
        ["tar", "--list", "--verbose", "--verbose", "--full-time", "--numeric-owner", "--gzip", "--file", archive],
        check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return sorted(done.stdout.splitlines())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Of everything that a small tmpfs has."""
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(b"some bytes\n")
    (top / "nothing").touch(0o600)
    (top / "-odd name\n\udcff").write_text("odd")
    (top / ("long" * 50)).write_text("a long name")
    (top / "link").symlink_to("/nowhere/at/all")
    (top / "folder-link").symlink_to("sub")
    os.mkfifo(top / "fifo", 0o620)
    if os.geteuid() == 0:
        os.mknod(top / "null", 0o20666, os.makedev(1, 3))
        os.mknod(top / "loop", 0o60660, os.makedev(7, 0))
        os.chown(top / "sub" / "file", 1234, 99_999_999)
    (top / "sub" / "file").chmod(0o4751)
    (top / "sub").chmod(0o1777)
    os.utime(top / "nothing", (1, 981_173_106))
    top.chmod(0o2755)
    return top


def test_it_packs_what_gnu_tar_packs(tree: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(pack(tree))
    assert call(tmp_path, CREATE, tree, theirs).returncode == 0
    assert listed(ours) == listed(theirs)
    assert len(listed(ours)) > 8


def test_a_socket_is_left_out_as_gnu_tar_leaves_it_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        with tarfile.open(fileobj=io.BytesIO(pack(tmp_path))) as archive:
            assert archive.getnames() == ["."]


def test_what_has_two_names_holes_or_is_too_much_is_left_to_gnu_tar(tmp_path: Path) -> None:
    for name in ("linked", "sparse", "large", "many"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / "one").write_text("x")
    (tmp_path / "linked" / "two").hardlink_to(tmp_path / "linked" / "one")
    with (tmp_path / "sparse" / "file").open("wb") as file:
        file.truncate(1 << 16)
    (tmp_path / "large" / "file").write_bytes(bytes(contents.MOST_BYTES + 1))
    for number in range(contents.MOST_ENTRIES):
        (tmp_path / "many" / str(number)).touch()
    for name in ("linked", "sparse", "large", "many"):
        with pytest.raises(TooMuch):
            pack(tmp_path / name)


def test_the_script_has_the_archive_that_is_ready_for_this_image_and_no_other(tree: Path, tmp_path: Path) -> None:
    put_script(tmp_path, PACK, tmp_path)
    image, other = tmp_path / "tmpfs-dev-51.tar.gz.img", tmp_path / "tmpfs-dev-52.tar.gz.img"
    image.touch()
    (tmp_path / READY / image.name).write_bytes(b"ready")
    assert call(tmp_path, CREATE, tree, image).returncode == 0
    assert image.read_bytes() == b"ready"
    assert call(tmp_path, CREATE, tree, other).returncode == 0
    assert listed(other), "that one was packed by tar"


def test_without_anything_ready_the_script_is_tar(tree: Path, tmp_path: Path) -> None:
    put_script(tmp_path, PACK, tmp_path)
    assert call(tmp_path, CREATE, tree, tmp_path / "image").returncode == 0
    assert listed(tmp_path / "image")
    shutil.rmtree(tmp_path / SCRIPTS)
    assert call(tmp_path, CREATE, tree, tmp_path / "image").returncode == 0, "whom it is hidden from finds tar at once"


@pytest.mark.parametrize("taken_out", [True, False])
def test_what_was_packed_is_unpacked_the_same(tree: Path, tmp_path: Path, taken_out: bool) -> None:
    image, there = tmp_path / "tmpfs-dev-51.tar.gz.img", tmp_path / "there"
    there.mkdir()
    image.write_bytes(pack(tree))
    put_script(tmp_path, UNPACK, tmp_path)
    if taken_out:
        unpack(tmp_path, tmp_path)
        assert (tmp_path / READY / image.name).exists()
    done = call(tmp_path, [*EXTRACT, str(there)], image)
    assert (done.returncode, done.stderr) == (0, "")
    again = tmp_path / "again"
    again.write_bytes(pack(there))
    assert listed(again) == listed(image)


def test_an_image_that_is_large_when_it_is_unpacked_is_left_to_tar(tmp_path: Path) -> None:
    put_script(tmp_path, UNPACK, tmp_path)
    zipped = zlib.compressobj(9, wbits=contents.GZIP)
    (tmp_path / "tmpfs-dev-1.tar.gz.img").write_bytes(zipped.compress(bytes(64 << 20)) + zipped.flush())
    (tmp_path / "tmpfs-dev-2.tar.gz.img").write_bytes(b"no gzip")
    (tmp_path / "tmpfs-dev-3.tar.gz.img").write_bytes(pack(tmp_path / SCRIPTS)[:-9])
    unpack(tmp_path, tmp_path)
    assert not list((tmp_path / READY).iterdir())
