"""Whatever a stream says, nothing outside of the root is touched, and it ends in an error that says so."""

import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.base.errors import CorruptPart
from tests.unit import handmade_tar
from tests.unit.handmade_tar import Member, directory, file, link, node, op, sparse, tar
from tests.unit.test_prework_support import SMALL, applied, is_root, overlays

box = pytest.fixture(handmade_tar.box)

HOSTILE: dict[str, list[Member]] = {
    "an absolute name": [file("/etc/passwd")],
    "a name with ..": [file("../outside/victim")],
    "a name with .. inside": [file("dir/../../outside/victim")],
    "a name that is ..": [file("..")],
    "a directory that is ..": [directory("../outside")],
    "an empty component": [file("dir//file")],
    "a dot component": [file("dir/./file")],
    "a NUL in the name": [({"name": "x", "pax_headers": {"path": "a\0b"}}, b"")],
    "a pax path that goes up": [({"name": "fine", "pax_headers": {"path": "../outside/victim"}}, b"x")],
    "a sparse name that goes up": [sparse("../outside/victim", "0\n", "0")],
    "a file below the image's absolute symlink": [file("absolute/victim")],
    "a file below the image's relative symlink": [file("relative/victim")],
    "a directory below a symlink": [directory("absolute/sub/new")],
    "a symlink below a symlink": [link("absolute/new", "x")],
    "a fifo below a symlink": [node("absolute/new", tarfile.FIFOTYPE)],
    "a file below a symlink of its own": [link("mine", "../outside"), file("mine/victim")],
    "a symlink instead of the directory": [directory("d"), link("d", "../outside"), file("d/victim")],
    "a file below itself": [file("file/below")],
    "a file below a loop": [file("loop/x")],
    "a file whose parent is missing": [file("no/such/parent")],
    "a hard link to the outside": [link("h", "../outside/victim", tarfile.LNKTYPE)],
    "a hard link to an absolute name": [link("h", "/etc/passwd", tarfile.LNKTYPE)],
    "a hard link through a symlink": [link("h", "absolute/victim", tarfile.LNKTYPE)],
    "a hard link below a symlink": [link("absolute/h", "file", tarfile.LNKTYPE)],
    "a hard link to a directory": [link("h", "dir", tarfile.LNKTYPE)],
    "a hard link to nothing": [link("h", "nothing", tarfile.LNKTYPE)],
    "a hard link that replaces its target's directory": [link("dir", "dir/file", tarfile.LNKTYPE)],
    "a removal of the root": [op(".", "remove")],
    "a file as the root": [file(".")],
    "a symlink as the root": [link(".", "/etc")],
    "an empty symlink": [link("l", "")],
    "a removal with data": [op("file", "remove", b"data")],
    "a directory with data": [({"name": "d", "type": tarfile.DIRTYPE, "size": 3}, b"abc")],
    "an op that nobody knows": [op("file", "format-disk")],
    "an op of another kind": [({"name": "d", "type": tarfile.DIRTYPE, "pax_headers": {"TRANSSHIP.op": "patch"}}, b"")],
    "an opaque file": [({"name": "f", "pax_headers": {"TRANSSHIP.opaque": "1"}}, b"")],
    "a type that nobody knows": [({"name": "f", "type": b"Z"}, b"")],
    "GNU's old sparse type": [({"name": "f", "type": b"S"}, b"")],
    "a sparse map out of order": [sparse("f", "2\n10\n5\n0\n5\n", "100", b"0123456789")],
    "a sparse map that overlaps": [sparse("f", "2\n0\n10\n5\n10\n", "100", bytes(20))],
    "a sparse map beyond the end": [sparse("f", "1\n90\n20\n", "100", bytes(20))],
    "a sparse map of more than there is": [sparse("f", "1\n0\n50\n", "100", bytes(20))],
    "a sparse map of less than there is": [sparse("f", "1\n0\n10\n", "100", bytes(20))],
    "a sparse map with a negative number": [sparse("f", "1\n-5\n20\n", "100", bytes(20))],
    "a sparse map that is no map": [sparse("f", "nonsense\n", "100", bytes(20))],
    "a sparse map without an end": [sparse("f", "1" * 600, "100", bytes(20))],
    "a sparse map with too many pieces": [sparse("f", "999999999\n", "100", bytes(20))],
    "a sparse map that is too short": [sparse("f", "3\n0\n1\n", "100", b"x")],
    "a sparse file of the wrong version": [sparse("f", "0\n", "0", **{"GNU.sparse.minor": "1"})],
    "a sparse file without a size": [sparse("f", "0\n", "")],
    "a sparse file that is too big": [sparse("f", "0\n", str(1 << 62))],
    "a patch of nothing": [
        sparse("nothing", "1\n0\n1\n", "1", b"x", **{"TRANSSHIP.op": "patch", "TRANSSHIP.base": "0"})
    ],
    "a patch of another file": [sparse("file", "0\n", "1", **{"TRANSSHIP.op": "patch", "TRANSSHIP.base": "7"})],
    "a patch through a symlink": [sparse("to-file", "0\n", "9", **{"TRANSSHIP.op": "patch", "TRANSSHIP.base": "9"})],
    "a patch of a directory": [sparse("dir", "0\n", "1", **{"TRANSSHIP.op": "patch", "TRANSSHIP.base": "4096"})],
    "a patch without a base": [sparse("file", "0\n", "1", **{"TRANSSHIP.op": "patch"})],
    "a patch without a map": [op("file", "patch", b"x", **{"TRANSSHIP.base": "6"})],
    "a device": [node("null", tarfile.CHRTYPE)],
    "a disk": [node("disk", tarfile.BLKTYPE)],
    "a name that is too long": [file("n" * 300)],
    "a path that is too long": [file("/".join("d" * 20000))],
    "a huge extended header": [({"name": "f", "pax_headers": {"comment": "x" * 200_000}}, b"")],
    "a huge xattr name": [({"name": "f", "pax_headers": {"SCHILY.xattr.user." + "n" * 300: "v"}}, b"")],
    "a mark that nobody knows": [({"name": "f", "pax_headers": {"TRANSSHIP.unmapped": "x"}}, b"")],
    "too many entries": [directory("d")] * 1001,
    "a time that is none": [({"name": "f", "pax_headers": {"mtime": "yesterday"}}, b"")],
    "a time of no clock": [({"name": "f", "pax_headers": {"mtime": "9" * 30}}, b"")],
    "an owner that is none": [({"name": "f", "pax_headers": {"uid": "4294967295"}}, b"")],
    "a negative size": [({"name": "f", "pax_headers": {"size": "-1"}}, b"")],
    "a huge size": [({"name": "f", "pax_headers": {"size": str(1 << 62)}}, b"")],
    "a size that is more than there is": [({"name": "f", "pax_headers": {"size": "1000000"}}, b"")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stream_is_refused_and_nothing_outside_is_touched(box: Path, name: str) -> None:
    with pytest.raises(CorruptPart):
        applied(box, tar(*HOSTILE[name]), devices=False, limits=SMALL)


ODD: dict[str, tuple[list[Member], Callable[[Path], bool]]] = {
    "a file replaces a symlink, not what it points to": (
        [file("to-file", b"mine")],
        lambda r: not (r / "to-file").is_symlink() and (r / "to-file").read_bytes() == b"mine",
    ),
    "a directory replaces a symlink": (
        [directory("absolute"), file("absolute/victim", b"mine")],
        lambda r: (r / "absolute/victim").read_bytes() == b"mine" and not (r / "absolute").is_symlink(),
    ),
    "a symlink replaces a directory": ([link("dir", "/etc")], lambda r: os.readlink(r / "dir") == "/etc"),
    "a symlink may point anywhere": ([link("l", "../../../etc/passwd")], lambda r: (r / "l").is_symlink()),
    "an entry comes twice": ([file("f", b"1"), file("f", b"2")], lambda r: (r / "f").read_bytes() == b"2"),
    "a hard link to itself": ([link("file", "file", tarfile.LNKTYPE)], lambda r: (r / "file").read_text() == "inside"),
    "a hard link to a symlink is one to the symlink": (
        [link("h", "to-file", tarfile.LNKTYPE)],
        lambda r: (r / "h").is_symlink() and (r / "h").lstat().st_nlink == 2,
    ),
    "a removal of a symlink removes the symlink": (
        [op("absolute", "remove")],
        lambda r: not (r / "absolute").is_symlink(),
    ),
    "a removal of what is not there": ([op("no", "remove"), op("no/such", "remove")], lambda r: True),
    "a removal below a symlink removes nothing": ([op("absolute/victim", "remove")], lambda r: True),
    "a removal below a file removes nothing": ([op("file/x", "remove")], lambda r: (r / "file").exists()),
    "an opaque symlink's target stays": (
        [directory("absolute", pax_headers={"TRANSSHIP.opaque": "1"})],
        lambda r: (r / "absolute").is_dir() and not os.listdir(r / "absolute"),
    ),
    "an opaque root": ([directory(".", pax_headers={"TRANSSHIP.opaque": "1"})], lambda r: not os.listdir(r)),
    "a trailing slash": ([directory("new/"), file("new/f")], lambda r: (r / "new/f").is_file()),
    "a directory that goes before the stream leaves it": (
        [directory("d"), directory("d/e"), op("d", "remove"), file("d", b"now")],
        lambda r: (r / "d").read_bytes() == b"now",
    ),
    "xattrs that a stream may not bring are left out": (
        [file("f", pax_headers={"SCHILY.xattr.security.selinux": "u:r:t", "SCHILY.xattr.bad": "x"})],
        lambda r: not any(n.startswith("bad") for n in os.listxattr(r / "f")),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_stream_is_applied_inside(box: Path, name: str) -> None:
    members, holds = ODD[name]
    applied(box, tar(*members), devices=False, limits=SMALL)
    assert holds(box)


def test_what_is_left_out_is_said(box: Path) -> None:
    summary = applied(box, tar(file("f", pax_headers={"SCHILY.xattr.security.selinux": "u:r:t"})))
    assert len(summary.notes) == 1
    assert "security.selinux" in summary.notes[0]


@pytest.mark.skipif(not is_root(), reason="needs root")
def test_devices_are_made_where_they_are_allowed(box: Path) -> None:
    applied(box, tar(node("null", tarfile.CHRTYPE)), devices=True)
    assert stat.S_ISCHR((box / "null").stat().st_mode)


@pytest.mark.root
def test_hostile_stream_through_an_overlay_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "image/var").mkdir(parents=True)
    (tmp_path / "image/var/run").symlink_to("/run")
    with overlays(tmp_path, [tmp_path / "image"]) as (here,):
        with pytest.raises(CorruptPart):
            applied(here.merged, tar(file("var/run/transship-was-here")))
        assert not Path("/run/transship-was-here").exists()
