"""Changes that a container may make to its files, by name, and the image that they are made to. No tests."""

import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from tests.unit.test_prework_support import exchange

MIB = 1 << 20
Change = Callable[[Path], object]
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, 2**32 - 1), (2, 4, 1234), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)]
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def image(root: Path, *, big: int = 6 * MIB) -> None:
    """What both hosts have as the image; `big`: how large its big file is, by which time goes."""
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
    (root / "big").write_bytes(os.urandom(big))
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
