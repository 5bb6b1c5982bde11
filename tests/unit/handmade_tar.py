"""Streams as no packer of ours would write them, and a root with traps for them. No tests."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.prework.tar import Entry, Kind
from tests.unit.test_prework_support import picture, written

VERSION = {"TRANSSHIP.version": "1"}
Member = tuple[dict[str, Any], bytes]


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
