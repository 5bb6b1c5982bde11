"""A stream that is cut, foreign or too big is an error of its own, a disk that is full another."""

import subprocess
from pathlib import Path

import pytest

from agent.base.errors import CorruptPart, StepFailed
from agent.prework.tar import Entry, Kind, Limits
from agent.prework.tree import Source
from agent.prework.unpack import apply
from tests.unit import handmade_tar
from tests.unit.handmade_tar import STREAM, file, tar
from tests.unit.test_prework_support import applied, is_root, packed, reader, written

box = pytest.fixture(handmade_tar.box)


@pytest.mark.parametrize("cut", range(0, len(STREAM), 256))
def test_stream_that_was_cut_is_no_success(box: Path, cut: int) -> None:
    with pytest.raises(CorruptPart):
        applied(box, STREAM[:cut])


def test_stream_with_something_after_its_end_is_refused(box: Path) -> None:
    applied(box, STREAM + bytes(9000))
    with pytest.raises(CorruptPart, match="after the end"):
        applied(box, STREAM + bytes(9000) + b"x")


@pytest.mark.parametrize("headers", [{}, {"TRANSSHIP.version": "2"}, {"comment": "x"}])
def test_stream_of_another_kind_or_version_is_refused(box: Path, headers: dict[str, str]) -> None:
    with pytest.raises(CorruptPart):
        applied(box, tar(file("f"), version=headers))
    assert not (box / "f").exists()


def test_empty_stream_is_refused(box: Path) -> None:
    for nothing in (b"", bytes(1024), bytes(10240)):
        with pytest.raises(CorruptPart):
            applied(box, nothing)


def test_more_data_than_allowed_is_refused(box: Path) -> None:
    stream = written([(Entry(Kind.FILE, f"f{n}", size=1000), bytes(1000)) for n in range(5)])
    applied(box, stream, limits=Limits(data_bytes=5000))
    with pytest.raises(CorruptPart, match="bigger"):
        applied(box, stream, limits=Limits(data_bytes=4999))


@pytest.mark.root
@pytest.mark.skipif(not is_root(), reason="needs root")
def test_full_disk_is_no_corruption(tmp_path: Path) -> None:
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(StepFailed) as caught:
            applied(tmp_path, written([(Entry(Kind.FILE, "big", size=1 << 20), bytes(1 << 20))]))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert not isinstance(caught.value, CorruptPart)
    assert "space" in caught.value.hint


def test_root_that_is_not_there_is_no_corruption(tmp_path: Path) -> None:
    for act in (lambda: applied(tmp_path / "no", STREAM), lambda: packed(Source(str(tmp_path / "no")))):
        with pytest.raises(StepFailed) as caught:
            act()
        assert not isinstance(caught.value, CorruptPart)


def test_check_can_stop_it(box: Path) -> None:
    class EnoughError(Exception):
        pass

    def check() -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        apply(str(box), reader(STREAM), check=check)
