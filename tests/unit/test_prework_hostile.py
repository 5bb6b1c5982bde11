"""Whatever a stream says, nothing outside of the root is touched, and it ends in an error that says so."""

import io
import os
import stat
import struct
import subprocess
import tarfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.base.errors import CorruptPart, StepFailed
from agent.prework.ids import IdMap, subordinate, xattr_to_container, xattr_to_host
from agent.prework.tar import Entry, Kind, Limits
from agent.prework.tree import Source
from agent.prework.unpack import apply
from tests.unit.test_prework_support import SMALL, applied, is_root, overlays, packed, picture, reader, written

VERSION = {"TRANSSHIP.version": "1"}
Member = tuple[dict[str, Any], bytes]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    """A root with what an image may have in it, beside things that nobody may touch."""
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir/file").write_text("inside")
    (root / "file").write_text("inside")
    (root / "absolute").symlink_to(tmp_path / "outside")
    (root / "relative").symlink_to("../outside")
    (root / "to-file").symlink_to(tmp_path / "outside/victim")
    (root / "loop").symlink_to("loop")
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "victim").write_text("untouched")
    before = picture(outside), sorted(os.listdir(tmp_path))
    yield root
    assert (picture(outside), sorted(os.listdir(tmp_path))) == before


def tar(*members: Member, version: dict[str, str] | None = None) -> bytes:
    """As another program would write it: no check of ours is on the way."""
    out = io.BytesIO()
    headers = VERSION if version is None else version
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        for fields, data in members:
            member = tarfile.TarInfo()
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"x", **more: Any) -> Member:
    return {"name": name, **more}, data


def link(name: str, target: str, type_: bytes = tarfile.SYMTYPE) -> Member:
    return {"name": name, "linkname": target, "type": type_}, b""


def directory(name: str, **more: Any) -> Member:
    return {"name": name, "type": tarfile.DIRTYPE, "mode": 0o755, **more}, b""


def node(name: str, type_: bytes) -> Member:
    return {"name": name, "type": type_, "devmajor": 1, "devminor": 3}, b""


def op(name: str, what: str, data: bytes = b"", **pax: str) -> Member:
    return {"name": name, "pax_headers": {"TRANSSHIP.op": what, **pax}}, data


def sparse(name: str, mapping: str, real: str, data: bytes = b"", **pax: str) -> Member:
    text = mapping.encode()
    body = text + bytes(-len(text) % 512) + data
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": real}
    return {"name": name, "pax_headers": {**headers, **pax}}, body


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


# --- streams that are broken, not clever -----------------------------------------------------------------------------


def a_stream() -> bytes:
    entries = [
        (Entry(Kind.DIR, "", mode=0o755), b""),
        (Entry(Kind.FILE, "big", mode=0o644, size=3000), b"b" * 3000),
        (Entry(Kind.DIR, "new", mode=0o700, xattrs=(("user.x", b"1"),)), b""),
        (Entry(Kind.FILE, "new/file", size=10, mtime_ns=5), b"0123456789"),
        (Entry(Kind.SYMLINK, "new/link", link="file"), b""),
        (Entry(Kind.HARDLINK, "new/hard", link="new/file"), b""),
        (Entry(Kind.REMOVE, "file"), b""),
    ]
    return written(entries)


STREAM = a_stream()


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


@given(position=st.integers(0, len(STREAM) - 1), value=st.integers(0, 255), more=st.binary(max_size=40))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_stream_does_no_damage(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, more: bytes
) -> None:
    damaged = bytearray(STREAM)
    damaged[position : position + 1 + len(more)] = bytes([value]) + more
    confined(tmp_path_factory, bytes(damaged))


def confined(factory: pytest.TempPathFactory, stream: bytes) -> None:
    base = factory.mktemp("fuzz")
    root, outside = base / "root", base / "outside"
    for path in (root, outside):
        path.mkdir()
        (path / "file").write_text("untouched")
    (root / "out").symlink_to("../outside")
    (root / "dir").mkdir()
    before = picture(outside)
    # An owner that the stream asks for can be given by root only.
    with suppress(CorruptPart if is_root() else StepFailed):
        applied(root, stream, devices=False, limits=SMALL)
    assert picture(outside) == before
    assert sorted(os.listdir(base)) == ["outside", "root"]


EVIL = [
    "out",
    "dir",
    "file",
    "a",
    "out/file",
    "dir/a",
    "a/b",
    "..",
    "../outside",
    "/tmp/x",
    "",
    "dir/../..",
    "a/b/c",
    ".",
]
names = st.sampled_from(EVIL)
entries = st.builds(
    Entry,
    st.sampled_from(sorted(Kind, key=lambda kind: kind.value)),
    names,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32),
    gid=st.integers(0, 2**32),
    mtime_ns=st.integers(-(2**63), 2**63),
    link=names,
    device=st.just((1, 3)),
    xattrs=st.sampled_from([(), (("user.x", b"y"),), (("trusted.overlay.opaque", b"y"),), (("nonsense", b""),)]),
    opaque=st.booleans(),
    unmapped=st.sampled_from(["", "u", "ug", "zzz"]),
    base=st.integers(0, 10),
)


@given(st.lists(st.tuples(entries, st.integers(0, 2000), st.booleans()), max_size=12))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@example([(Entry(Kind.SYMLINK, "a", link="../outside"), 0, False), (Entry(Kind.FILE, "a/file"), 5, False)])
def test_any_stream_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[Entry, int, bool]]
) -> None:
    content = []
    for entry, size, as_sparse in drawn:
        has_data = entry.kind in (Kind.FILE, Kind.PATCH)
        entry.size = size if has_data else 0
        entry.extents = array("q", (0, size)) if has_data and (as_sparse or entry.kind is Kind.PATCH) else None
        content.append((entry, bytes(size) if has_data else b""))
    confined(tmp_path_factory, written(content))


@given(st.binary(max_size=4000))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_noise_is_corrupt(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    confined(tmp_path_factory, written([])[:-1024] + noise)


@pytest.mark.root
def test_hostile_stream_through_an_overlay_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "image/var").mkdir(parents=True)
    (tmp_path / "image/var/run").symlink_to("/run")
    with overlays(tmp_path, tmp_path / "image", count=1) as (here,):
        with pytest.raises(CorruptPart):
            applied(here.merged, tar(file("var/run/transship-was-here")))
        assert not Path("/run/transship-was-here").exists()


# --- whose it is -----------------------------------------------------------------------------------------------------

ACL = (
    struct.pack("<I", 2)
    + struct.pack("<HHI", 2, 4, 33)
    + struct.pack("<HHI", 8, 4, 44)
    + struct.pack("<HHI", 4, 4, 2**32 - 1)
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
HERE, THERE = subordinate(100_000, 200_000), subordinate(500_000, 600_000)


def test_acl_ids_are_shifted_and_back() -> None:
    on_disk = xattr_to_host("system.posix_acl_access", ACL, HERE)
    assert struct.unpack("<HHI", on_disk[4:12]) == (2, 4, 100_033)
    assert struct.unpack("<HHI", on_disk[12:20]) == (8, 4, 200_044)
    assert on_disk[20:] == ACL[20:]
    assert xattr_to_container("system.posix_acl_access", on_disk, HERE) == ACL


def test_capability_belongs_to_the_owner_of_the_namespace() -> None:
    on_disk = xattr_to_host("security.capability", CAPABILITY, HERE)
    assert len(on_disk) == 24
    assert struct.unpack("<I", on_disk[20:]) == (100_000,)
    assert xattr_to_container("security.capability", on_disk, HERE) == CAPABILITY
    assert xattr_to_host("security.capability", CAPABILITY, IdMap()) == CAPABILITY


@pytest.mark.parametrize("value", [b"", b"\0", b"x" * 20, b"x" * 24, ACL[:-1]])
@pytest.mark.parametrize("name", ["system.posix_acl_access", "security.capability", "user.x"])
def test_values_that_are_none_are_left_alone(name: str, value: bytes) -> None:
    xattr_to_container(name, value, HERE)
    xattr_to_host(name, value, HERE)


@pytest.mark.skipif(not is_root(), reason="needs root")
@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (HERE, IdMap()), (IdMap(), THERE), (IdMap(), IdMap())])
def test_owners_are_the_same_to_the_container(tmp_path: Path, here: IdMap, there: IdMap) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path, ids in ((source, here), (target, there)):
        path.mkdir()
        os.chown(path, ids.uid_to_host(0) or 0, ids.gid_to_host(0) or 0)
    (source / "file").write_text("x")
    os.chown(source / "file", here.uid_to_host(33) or 33, here.gid_to_host(44) or 44)
    os.setxattr(source / "file", "system.posix_acl_access", xattr_to_host("system.posix_acl_access", FULL_ACL, here))
    os.setxattr(source / "file", "security.capability", xattr_to_host("security.capability", CAPABILITY, here))
    (source / "link").symlink_to("file")
    os.chown(source / "link", here.uid_to_host(5) or 5, here.gid_to_host(6) or 6, follow_symlinks=False)
    stream, result = packed(Source(str(source), ids=here))
    summary = applied(target, stream, ids=there)
    assert result.notes == summary.notes == ()
    found = (target / "file").stat()
    assert (found.st_uid, found.st_gid) == (there.uid_to_host(33), there.gid_to_host(44))
    found = (target / "link").lstat()
    assert (found.st_uid, found.st_gid) == (there.uid_to_host(5), there.gid_to_host(6))
    for name, value in (("system.posix_acl_access", FULL_ACL), ("security.capability", CAPABILITY)):
        assert os.getxattr(target / "file", name) == xattr_to_host(name, value, there)


FULL_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *each)
    for each in [(1, 6, 2**32 - 1), (2, 4, 33), (4, 4, 2**32 - 1), (8, 4, 44), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)]
)


@pytest.mark.skipif(not is_root(), reason="needs root")
def test_ids_outside_of_the_range_are_kept_and_said(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        path.mkdir()
        os.chown(path, 100_000, 200_000)
    (source / "roots").write_text("x")  # the host's root, nobody to the container
    stream, result = packed(Source(str(source), ids=HERE))
    summary = applied(target, stream, ids=THERE)
    assert (target / "roots").stat().st_uid == 0
    assert len(result.notes) == len(summary.notes) == 1
    assert "0:0" in result.notes[0]
