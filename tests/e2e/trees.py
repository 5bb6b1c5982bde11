"""Runs inside a container: makes a tree with everything in it, changes everything, and says what is there.

python3 trees.py make|change|tree FOLDER...      `tree` prints one JSON object: path -> all that is known of it
"""

import hashlib
import json
import os
import shutil
import stat
import struct
import sys
from pathlib import Path

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
OLD = 1_000_000_007_123_456_789
PIECE = 128 << 10


def noise(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def make(top: Path) -> None:
    """One file for each row of `change`, and others that stay."""
    for name in ("rewritten", "appended", "cut", "deleted", "renamed", "to-a-directory", "chmod", "touched", "linked"):
        (top / name).write_bytes(noise(name, 3000))
    for name in ("xattr-added", "xattr-gone", "xattr-changed", "capable"):
        (top / name).write_bytes(b"x")
    os.setxattr(top / "xattr-gone", "user.gone", b"1")
    os.setxattr(top / "xattr-changed", "user.changed", b"before")
    (top / "large").write_bytes(noise("large", 34 * PIECE))
    with (top / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    os.link(top / "linked", top / "linked-too")
    for path in ("stays/a/b/c", "moved/deep/er", "emptied/x", "to-a-file/x", "renamed-directory/in"):
        (top / path).mkdir(parents=True)
        (top / path / "file").write_text(path)
    (top / "link").symlink_to("stays/a")
    (top / "dangling").symlink_to("/nowhere")
    os.mkfifo(top / "fifo", 0o640)
    (top / "with space and \n line, umlaut ü").write_text("a name")
    os.setxattr(top / "stays", "user.of.a.directory", b"\0binary\xff")
    (top / "setuid").write_bytes(b"#!")
    (top / "setuid").chmod(0o4755)
    for path in top.rglob("*"):
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)


def change(top: Path) -> None:
    (top / "rewritten").write_text("anew")
    with (top / "appended").open("ab") as file:
        file.write(b"more")
    os.truncate(top / "cut", 10)
    (top / "deleted").unlink()
    (top / "renamed").rename(top / "has-been-renamed")
    (top / "to-a-directory").unlink()
    (top / "to-a-directory").mkdir(mode=0o700)
    (top / "to-a-directory/inside").write_text("in a directory that was a file")
    shutil.rmtree(top / "to-a-file")
    (top / "to-a-file").write_text("was a directory")
    (top / "chmod").chmod(0o600)
    os.chown(top / "chmod", 12, 34)
    os.utime(top / "touched", ns=(OLD, OLD + 1))
    os.setxattr(top / "xattr-added", "user.added", b"1")
    os.removexattr(top / "xattr-gone", "user.gone")
    os.setxattr(top / "xattr-changed", "user.changed", b"after")
    os.setxattr(top / "capable", "security.capability", CAPABILITY)
    with (top / "large").open("r+b") as file:  # two pieces of thirty-four
        file.seek(7 * PIECE + 11)
        file.write(b"changed")
        file.seek(30 * PIECE)
        file.write(b"changed")
    with (top / "sparse").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"an island")
        file.truncate(9 << 20)
    (top / "linked-too").unlink()
    os.link(top / "linked", top / "linked-elsewhere")
    (top / "added").write_text("new")
    (top / "stays/a/b/added-deep").write_text("new")
    shutil.rmtree(top / "emptied")
    (top / "emptied").mkdir()
    (top / "moved").rename(top / "stays/moved-here")
    (top / "renamed-directory").rename(top / "directory-renamed")
    (top / "link").unlink()
    (top / "link").symlink_to("stays/a/b")
    os.utime(top / "stays/a", ns=(OLD, OLD + 2))


def change_image(root: Path) -> None:
    """What only a layer above an image has: the image's own files deleted, replaced, touched."""
    [library] = root.glob("usr/lib/python3.[0-9]*")
    (library / "this.py").unlink()
    shutil.rmtree(library / "xmlrpc")
    shutil.rmtree(library / "wsgiref")
    (library / "wsgiref").mkdir()
    (library / "wsgiref/own").write_text("the image's directory is hidden")
    (library / "antigravity.py").unlink()
    (library / "antigravity.py").mkdir()
    (root / "etc/group").chmod(0o600)
    with (root / "etc/passwd").open("a") as file:
        file.write("more::7:7:::\n")
    os.setxattr(library / "tabnanny.py", "user.only", b"metadata")
    shutil.move(library / "curses", library / "curses-moved")


def tree(top: Path) -> dict[str, object]:
    """Without what is mounted in it."""
    device = top.lstat().st_dev
    found, first = {".": about(top, {})}, {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.lstat().st_dev != device:
                if name in folders:
                    folders.remove(name)
            else:
                found[str(path.relative_to(top))] = about(path, first)
    return found


def about(path: Path, first: dict[int, str]) -> dict[str, object]:
    state = path.lstat()
    said: dict[str, object] = {"mode": oct(state.st_mode), "owner": [state.st_uid, state.st_gid]}
    said["mtime"] = state.st_mtime_ns
    said["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names_of(path)}
    if stat.S_ISLNK(state.st_mode):
        said["to"] = str(path.readlink())
    elif stat.S_ISREG(state.st_mode):
        said["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        said["size"], said["sparse"] = state.st_size, state.st_blocks * 512 < state.st_size
        if state.st_nlink > 1:
            said["links"], said["same-as"] = state.st_nlink, first.setdefault(state.st_ino, str(path))
    return said


def names_of(path: Path) -> list[str]:
    return [name for name in sorted(os.listxattr(path, follow_symlinks=False)) if name != "security.selinux"]


if __name__ == "__main__":
    verb, *places = sys.argv[1:]
    if verb == "tree":
        print(json.dumps({place: tree(Path(place)) for place in places}))
    for place in places if verb != "tree" else ():
        {"make": make, "change": change, "change-image": change_image}[verb](Path(place))
