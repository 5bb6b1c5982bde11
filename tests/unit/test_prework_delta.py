"""The tree on the target is the tree of the source after the freeze, whatever happened between the passes."""

import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.base.errors import StepFailed
from agent.prework.tree import Source
from tests.unit.test_prework_support import (
    applied,
    assert_same,
    exchange,
    is_root,
    let_the_clock_tick,
    overlays,
    packed,
    picture,
)

Change = Callable[[Path], object]
MIB = 1 << 20
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, 2**32 - 1), (2, 4, 1234), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)]
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
pytestmark = pytest.mark.root


def image(root: Path) -> None:
    """What both hosts have as the image."""
    for name in ("etc", "full/sub/deep", "gone/sub", "moved/sub", "kept", "run", "to-file/x", "swap-a", "swap-b"):
        (root / name).mkdir(parents=True)
    for name in ("etc/conf", "full/a", "full/sub/deep/f", "gone/sub/g", "moved/sub/m", "kept/k", "to-file/x/y", "tool"):
        (root / name).write_text(f"the image's {name}\n" * 100)
    for name in ("swap-a/1", "swap-b/2", "to-dir", "doomed", "chmodded", "touched", "linked-1", "xattred"):
        (root / name).write_text(name)
    os.link(root / "linked-1", root / "linked-2")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "latest").symlink_to("etc/conf")
    (root / "big").write_bytes(os.urandom(6 * MIB))
    (root / "tool").chmod(0o4755)
    os.setxattr(root / "xattred", "user.image", b"1")
    os.setxattr(root / "kept", "user.kept", b"of the image")
    for path, _, files in os.walk(root):
        for name in [path, *(f"{path}/{f}" for f in files)]:
            os.utime(name, ns=(10**18, 10**18 + 123456789), follow_symlinks=False)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def write_sparse(path: Path, *pieces: int, size: int) -> None:
    with path.open("wb") as file:
        for offset in pieces:
            file.seek(offset)
            file.write(os.urandom(8192))
        file.truncate(size)


def replace_dir_by_file(r: Path) -> None:
    shutil.rmtree(r / "to-file")
    (r / "to-file").write_text("now a file")


def replace_file_by_dir(r: Path) -> None:
    (r / "to-dir").unlink()
    (r / "to-dir/below").mkdir(parents=True)
    (r / "to-dir/below/f").write_text("x")


def make_opaque(r: Path) -> None:
    shutil.rmtree(r / "full")
    (r / "full").mkdir()
    (r / "full/new").write_text("only this")


def rename_copied_dir(r: Path) -> None:
    """With redirect_dir off a directory of the image can't be renamed; the shell copies it instead."""
    shutil.copytree(r / "moved", r / "moved-2", symlinks=True)
    shutil.rmtree(r / "moved")


def rename_own_dir(r: Path) -> None:
    (r / "own/sub").mkdir(parents=True)
    (r / "own/sub/f").write_text("own")
    (r / "own").rename(r / "owned")


def mmap_like_rewrite(r: Path) -> None:
    with (r / "big").open("r+b") as file:
        file.seek(3 * MIB + 17)
        file.write(b"changed in the middle")


def special_files(r: Path) -> None:
    os.mkfifo(r / "fifo", 0o640)
    os.mknod(r / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(r / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 9))
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(r)
        sock.bind("socket")
        os.chdir(here)
    os.chmod(r / "fifo", 0o600)


def acls(r: Path) -> None:
    os.setxattr(r / "etc", "system.posix_acl_default", ACL)
    os.setxattr(r / "etc/conf", "system.posix_acl_access", ACL)
    (r / "etc/heir").write_text("inherits")
    (r / "etc/heiress").mkdir()


def shed_acl(r: Path) -> None:
    acls(r)
    (r / "etc/plain").write_text("inherited, and lost it")
    os.removexattr(r / "etc/plain", "system.posix_acl_access")


def hard_link_to_image(r: Path) -> None:
    os.link(r / "linked-1", r / "linked-3")
    (r / "linked-3").write_text("copied up by the link")


def odd_names(r: Path) -> None:
    (r / ("long" * 60)).write_text("long name")
    deep = r
    for _ in range(30):
        deep = deep / "a-directory-with-a-name"
    deep.mkdir(parents=True)
    (deep / "bottom").symlink_to("../" * 60 + "etc/conf")
    for name in (b"latin-\xe9", b"new\nline", b"-rf", b"sp ace=%3D%", b"back\\slash", "ünï\u2028".encode()):
        Path(os.fsdecode(bytes(r) + b"/" + name)).write_bytes(name)
    (r / ".wh.not-a-whiteout").write_text("an AUFS name means nothing here")


CHANGES: dict[str, Change] = {
    "a file is modified": lambda r: (r / "etc/conf").write_text("modified"),
    "a file is appended to": lambda r: append(r / "etc/conf", b"more"),
    "a file is added": lambda r: (r / "kept/added").write_text("added"),
    "an empty file is added": lambda r: (r / "kept/empty").touch(),
    "a file is deleted": lambda r: (r / "doomed").unlink(),
    "a directory is deleted": lambda r: shutil.rmtree(r / "gone"),
    "a file is renamed": lambda r: (r / "touched").rename(r / "kept/touched-2"),
    "a directory is moved by copying": rename_copied_dir,
    "a new directory is renamed": rename_own_dir,
    "a directory becomes a file": replace_dir_by_file,
    "a file becomes a directory": replace_file_by_dir,
    "a file becomes a symlink": lambda r: ((r / "doomed").unlink(), (r / "doomed").symlink_to("/etc/passwd")),
    "a symlink becomes a directory": lambda r: ((r / "var/run").unlink(), (r / "var/run/x").mkdir(parents=True)),
    "a directory hides the image's": make_opaque,
    "two files change places": lambda r: exchange(str(r / "swap-a/1"), str(r / "swap-b/2")),
    "only the mode changes": lambda r: (r / "chmodded").chmod(0o1751),
    "only the owner changes": lambda r: os.chown(r / "tool", 3_000_000_000, 5_000_000),
    "the setuid bit stays through chown": lambda r: (os.chown(r / "tool", 7, 8), (r / "tool").chmod(0o6711)),
    "only the times change": lambda r: os.utime(r / "touched", ns=(5, -1_500_000_007)),
    "only an xattr changes": lambda r: os.setxattr(r / "xattred", "user.image", b"2\n=\0"),
    "an xattr goes": lambda r: os.removexattr(r / "xattred", "user.image"),
    "a directory's xattr changes": lambda r: os.setxattr(r / "kept", "user.kept", b"ours"),
    "a directory's xattr goes": lambda r: os.removexattr(r / "kept", "user.kept"),
    "a directory's metadata changes": lambda r: (os.chown(r / "gone", 5, 6), (r / "gone").chmod(0o3770)),
    "the root's metadata changes": lambda r: (r.chmod(0o711), os.setxattr(r, "trusted.of-root", b"x")),
    "an odd xattr name": lambda r: os.setxattr(r / "xattred", "user.a=b%3D%", b"odd"),
    "a symlink's own metadata": lambda r: (
        os.chown(r / "latest", 9, 9, follow_symlinks=False),
        os.setxattr(r / "latest", "trusted.of-link", b"y", follow_symlinks=False),
        os.utime(r / "latest", ns=(1, 2), follow_symlinks=False),
    ),
    "a capability": lambda r: os.setxattr(r / "tool", "security.capability", CAPABILITY),
    "ACLs": acls,
    "an inherited ACL is shed": shed_acl,
    "hard links are made": lambda r: (os.link(r / "tool", r / "kept/tool-2"), os.link(r / "tool", r / "a-tool")),
    "a hard link of the image is broken": lambda r: (r / "linked-1").write_text("alone now"),
    "a hard link to the image": hard_link_to_image,
    "a symlink with two names": lambda r: os.link(r / "latest", r / "later", follow_symlinks=False),
    "a big file changes in the middle": mmap_like_rewrite,
    "a big file grows": lambda r: append(r / "big", os.urandom(MIB + 5)),
    "a big file is cut": lambda r: os.truncate(r / "big", 4 * MIB + 1),
    "a big file is emptied": lambda r: os.truncate(r / "big", 0),
    "a sparse file": lambda r: write_sparse(r / "sparse", 0, 40 * MIB, 99 * MIB, size=100 * MIB),
    "a sparse file that ends in a hole": lambda r: write_sparse(r / "sparse", 8 * MIB, size=50 * MIB),
    "a file that is one hole": lambda r: write_sparse(r / "hole", size=1 << 34),
    "special files": special_files,
    "odd names": odd_names,
}


def restored() -> dict[str, Change]:
    """Things to be undone between the passes: the first pass saw them, the second has to take them back."""

    def again(name: str) -> Change:
        return lambda r: (r / name).write_text("back again")

    return {
        "a deleted file comes back": again("doomed"),
        "a deleted directory comes back": lambda r: (r / "gone/other").mkdir(parents=True),
        "a file becomes a directory again": lambda r: ((r / "to-file").unlink(), (r / "to-file/z").mkdir(parents=True)),
        "a directory becomes a file again": lambda r: (shutil.rmtree(r / "to-dir"), again("to-dir")(r)),
        "links are cut": lambda r: ((r / "a-tool").unlink(), (r / "kept/tool-2").write_text("own")),
        "a hole is filled": lambda r: write_sparse(r / "sparse", 0, 4096 * 20, size=123 * 4096),
        "content of the opaque directory": lambda r: ((r / "full/new").unlink(), (r / "full/newer").touch()),
        "the opaque directory is replaced": lambda r: (shutil.rmtree(r / "full"), (r / "full/sub").mkdir(parents=True)),
        "specials go": lambda r: ((r / "fifo").unlink(), (r / "socket").unlink(), (r / "null").unlink()),
        "an ACL goes": lambda r: os.removexattr(r / "etc", "system.posix_acl_default"),
    }


def run(tmp_path: Path, before: list[Change], between: list[Change], *, live_passes: int = 0) -> tuple[int, int]:
    lower = tmp_path / "image"
    lower.mkdir()
    image(lower)
    with overlays(tmp_path, lower) as (here, there):
        for change in before:
            change(here.merged)
        let_the_clock_tick()
        stream, first = packed(here.source())
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        index = first.index
        for change in between:
            change(here.merged)
            if live_passes:
                let_the_clock_tick()
                stream, live = packed(here.source(), index, live=True)
                applied(there.merged, stream)
                index = live.index
        stream, last = packed(here.source(), index, live=False)
        summary = applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        assert summary.notes == () == last.notes
        return last.entries, last.data_bytes


@pytest.mark.parametrize("name", CHANGES)
def test_change_before_the_first_pass_arrives(tmp_path: Path, name: str) -> None:
    entries, _ = run(tmp_path, [CHANGES[name]], [])
    assert entries == 0


@pytest.mark.parametrize("name", CHANGES)
def test_change_between_the_passes_arrives(tmp_path: Path, name: str) -> None:
    run(tmp_path, [], [CHANGES[name]])


@pytest.mark.parametrize("name", CHANGES)
def test_change_to_what_was_already_copied_up_arrives(tmp_path: Path, name: str) -> None:
    """The image is empty: all files are in the writable layer, and were sent by the first pass."""
    with overlays(tmp_path, _empty(tmp_path)) as (here, there):
        image(here.merged)
        let_the_clock_tick()
        stream, first = packed(here.source())
        applied(there.merged, stream)
        CHANGES[name](here.merged)
        stream, _ = packed(here.source(), first.index, live=False)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


CONTRADICTORY = {
    "a file becomes a symlink",
    "an xattr goes",
    "a directory's xattr goes",
    "a directory's metadata changes",
    "a sparse file that ends in a hole",
    "a big file is emptied",
    "an inherited ACL is shed",
    "only the times change",
}


def test_all_changes_at_once_arrive(tmp_path: Path) -> None:
    run(tmp_path, [], [change for name, change in CHANGES.items() if name not in CONTRADICTORY])


@pytest.mark.parametrize("live_passes", [0, 1])
def test_what_the_first_pass_saw_is_taken_back(tmp_path: Path, live_passes: int) -> None:
    names = ["a file is deleted", "a directory is deleted", "a directory becomes a file", "a file becomes a directory"]
    names += ["hard links are made", "a sparse file", "a directory hides the image's", "special files", "ACLs"]
    undone = restored()
    run(tmp_path, [CHANGES[n] for n in names], list(undone.values()), live_passes=live_passes)


def test_delta_of_a_big_file_is_its_changed_pieces(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "db").write_bytes(os.urandom(32 * MIB))
    let_the_clock_tick()
    stream, first = packed(Source(str(source)))
    applied(target, stream)
    mapped = os.stat(target / "db").st_ino
    with (source / "db").open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"page")
    stream, last = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)
    assert last.data_bytes == 128 << 10
    assert os.stat(target / "db").st_ino == mapped


def test_unchanged_tree_sends_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, list(CHANGES.values())[:3], []) == (0, 0)


@pytest.mark.parametrize("options", [",redirect_dir=on", ",redirect_dir=on,metacopy=on"])
def test_renamed_directories_kept_as_references_come_from_the_merged_view(tmp_path: Path, options: str) -> None:
    lower = tmp_path / "image"
    lower.mkdir()
    image(lower)
    with overlays(tmp_path, lower, options=options) as (here, there):
        (here.merged / "moved").rename(here.merged / "kept/renamed")
        (here.merged / "kept/renamed/own").write_text("added below a reference")
        (here.merged / "full").rename(here.merged / "fuller")
        (here.merged / "fuller/a").unlink()
        os.chown(here.merged / "big", 4, 4)  # with metacopy its bytes stay in the image
        let_the_clock_tick()
        with pytest.raises(StepFailed, match="image"):
            packed(here.source())
        source = here.source(merged=str(here.merged))
        stream, first = packed(source)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        (here.merged / "kept/renamed/sub/m").write_text("changed below a reference")
        (here.merged / "gone").rename(here.merged / "gone-2")
        (here.merged / "fuller/sub/deep/f").unlink()
        stream, last = packed(source, first.index, live=False)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        assert last.data_bytes < MIB


def test_what_is_mounted_over_a_reference_is_left_out(tmp_path: Path) -> None:
    """The merged view of a running container shows volumes and /etc/hosts, which are not of this layer."""
    lower, other = tmp_path / "image", tmp_path / "other"
    for path in (lower, other):
        path.mkdir()
        image(path)
    (other / "secret").write_text("of the host")
    with overlays(tmp_path, lower, options=",redirect_dir=on") as (here, there):
        (here.merged / "full").rename(here.merged / "fuller")
        mounted = [(other, here.merged / "fuller/sub"), (other / "secret", here.merged / "fuller/a")]
        for what, where in mounted:
            subprocess.run(["mount", "--bind", str(what), str(where)], check=True)
        try:
            stream, _ = packed(here.source(merged=str(here.merged)))
        finally:
            for _, where in mounted:
                subprocess.run(["umount", str(where)], check=True)
        assert b"of the host" not in stream
        applied(there.merged, stream)
        assert os.listdir(there.merged / "fuller/sub") == []


def test_whiteouts_that_are_xattrs_are_whiteouts(tmp_path: Path) -> None:
    lower = tmp_path / "image"
    lower.mkdir()
    image(lower)
    with overlays(tmp_path, lower) as (here, there):
        (here.upper / "kept").mkdir()
        (here.upper / "kept/k").touch()
        os.setxattr(here.upper / "kept", "trusted.overlay.opaque", b"x")
        os.setxattr(here.upper / "kept/k", "trusted.overlay.whiteout", b"y")
        stream, packed_ = packed(here.source())
        applied(there.merged, stream)
        assert packed_.removed == 1
        assert not (there.merged / "kept/k").exists()


def test_volume_of_a_nested_engine_keeps_its_overlay_marks(tmp_path: Path) -> None:
    """In a plain tree a device 0/0 and trusted.overlay.* are content: the volume may be a Docker's data directory."""
    if not is_root():
        pytest.skip("needs root")
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "diff").mkdir(parents=True)
    target.mkdir()
    os.mknod(source / "diff/deleted", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(source / "diff", "trusted.overlay.opaque", b"y")
    stream, _ = packed(Source(str(source)))
    applied(target, stream)
    assert_same(source, target)
    assert os.getxattr(target / "diff", "trusted.overlay.opaque") == b"y"


# --- anything, in any order ------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c"]
BELOW = [f"{x}/{y}" for x in NAMES for y in NAMES]
PATHS = [*NAMES, *BELOW, *(f"{path}/{z}" for path in BELOW for z in "ab")]
path_of = st.sampled_from(PATHS)


def _open(path: Path) -> int:
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "not a file")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def write_at(path: Path, *pieces: tuple[int, bytes], size: int | None = None) -> None:
    fd = _open(path)
    try:
        for offset, data in pieces:
            os.pwrite(fd, data, os.fstat(fd).st_size if offset < 0 else offset)
        if size is not None:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_xattrs(path: Path) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        os.removexattr(path, name, follow_symlinks=False)


OPERATIONS: dict[str, Callable[[Path, int], object]] = {
    "write": lambda p, n: write_at(p, (0, b"w" * n * 3000), size=n * 3000),
    "grow": lambda p, n: write_at(p, (-1, os.urandom(n * 1000))),
    "big": lambda p, n: write_at(p, (0, os.urandom(4 * MIB + n))),
    "poke": lambda p, n: write_at(p, (n << 18, b"poked")),
    "hole": lambda p, n: write_at(p, (n << 18, b"x"), size=(n + 1) << 18),
    "mkdir": lambda p, n: p.mkdir(),
    "remove": lambda p, n: remove(p),
    "chmod": lambda p, n: p.chmod(0o400 | n * 0o123),
    "chown": lambda p, n: os.chown(p, n, n + 1, follow_symlinks=False),
    "xattr": lambda p, n: os.setxattr(p, f"trusted.n{n % 3}", b"v" * n, follow_symlinks=False),
    "unxattr": lambda p, n: remove_xattrs(p),
    "utime": lambda p, n: os.utime(p, ns=(n, n << 50), follow_symlinks=False),
    "fifo": lambda p, n: os.mkfifo(p),
}
PAIRED: dict[str, Callable[[Path, Path], object]] = {
    "rename": lambda p, q: p.rename(q),
    "exchange": lambda p, q: exchange(str(p), str(q)),
    "link": lambda p, q: os.link(p, q, follow_symlinks=False),
    "symlink": lambda p, q: q.symlink_to(p.name),
}
IMPOSSIBLE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EXDEV}
IMPOSSIBLE |= {errno.EPERM, errno.ELOOP, errno.ENODATA, errno.EBUSY, errno.EOPNOTSUPP, errno.ENXIO}
operation = st.one_of(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), path_of, st.integers(0, 17)),
    st.tuples(st.sampled_from(sorted(PAIRED)), path_of, path_of),
)


def perform(root: Path, what: str, path: str, value: int | str) -> None:
    try:
        if isinstance(value, int):
            OPERATIONS[what](root / path, value)
        else:
            PAIRED[what](root / path, root / value)
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise


def image_of_names(root: Path) -> None:
    for path in ("a/a", "a/b", "b/c"):
        (root / path).mkdir(parents=True)
    for path in ("c", "a/c", "a/a/a", "a/b/b", "b/c/a"):
        (root / path).write_text(path)
    os.link(root / "c", root / "b/a")


rounds = st.lists(st.lists(operation, max_size=12), min_size=2, max_size=4)


@given(rounds=rounds)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changes_in_any_order_through_overlays(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list]
) -> None:
    base = tmp_path_factory.mktemp("any")
    lower = base / "image"
    lower.mkdir()
    image_of_names(lower)
    with overlays(base, lower) as (here, there):
        _rounds(here.source(), here.merged, there.merged, rounds)


@given(rounds=rounds)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changes_in_any_order_in_a_volume(tmp_path_factory: pytest.TempPathFactory, rounds: list[list]) -> None:
    base = tmp_path_factory.mktemp("any")
    source, target = base / "source", base / "target"
    source.mkdir()
    target.mkdir()
    _rounds(Source(str(source)), source, target, rounds)


def _rounds(source: Source, here: Path, there: Path, rounds: list[list]) -> None:
    index = None
    for number, operations in enumerate(rounds):
        for what, path, value in operations:
            perform(here, what, path, value)
        let_the_clock_tick()
        live = number < len(rounds) - 1
        stream, result = packed(source, index, live=live)
        index = result.index
        applied(there, stream)
    assert_same(here, there)
    assert picture(there)
