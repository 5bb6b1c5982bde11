"""Owners, ACLs and capabilities mean the same to the container on both hosts."""

import os
import struct
from pathlib import Path

import pytest

from agent.prework.ids import IdMap, subordinate, xattr_to_container, xattr_to_host
from agent.prework.tree import Source
from tests.unit.test_prework_support import applied, is_root, packed

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
