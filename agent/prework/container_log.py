"""A container's log as dockerd keeps it, json-file or local: its files for the first pass, its entries for the delta.

dockerd notes a log's size when it opens it at the start, and reads no further: what is there before the start is shown,
what is put into the file behind its back is cut off. So the files of the first pass are laid down before the start, and
the entries that came after are printed again at the target, through the pipes that the container prints to.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.base.errors import StepFailed
from agent.base.protobuf import fields

STDOUT, STDERR = 1, 2
FRAME = struct.Struct(">BI")
"""One entry in the delta: the stream's number, the length of what follows."""
MOST_ROTATED = 100
_LENGTH = struct.Struct(">I")


def places(data_root: Path, container_id: str) -> dict[str, Path]:
    """Names of log files on the wire -> where dockerd keeps them for this container; both drivers."""
    folder = data_root / "containers" / container_id
    current = {"json.log": folder / f"{container_id}-json.log", "local.log": folder / "local-logs" / "container.log"}
    found = dict(current)
    for name, path in current.items():
        for number in range(1, MOST_ROTATED):
            for ending in ("", ".gz"):
                found[f"{name}.{number}{ending}"] = path.with_name(f"{path.name}.{number}{ending}")
    return found


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the log that is being written had come."""

    name: str
    inode: int
    size: int


def mark(files: dict[str, Path]) -> Mark | None:
    """Where the current log ends now; None where dockerd keeps none (driver none, journald, ...)."""
    for name in ("json.log", "local.log"):
        try:
            found = files[name].stat()
        except OSError:
            continue
        return Mark(name, found.st_ino, found.st_size)
    return None


def entries_since(files: dict[str, Path], since: Mark) -> Iterator[bytes]:
    """Frames of all entries written after the mark; a rotation in between is followed.

    Raises:
        StepFailed: the log was rotated so often that lines in between are gone, or can't be read.

    """
    current, rotated = files[since.name], files[f"{since.name}.1"]
    if _inode(current) == since.inode:
        yield from _frames(since.name, current, since.size)
    elif _inode(rotated) == since.inode:
        yield from _frames(since.name, rotated, since.size)
        yield from _frames(since.name, current, 0)
    else:
        raise StepFailed(
            "the container's log was rotated several times during the move",
            hint="a larger max-size in its log options makes that unlikely",
        )


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return -1


def _frames(name: str, path: Path, start: int) -> Iterator[bytes]:
    read = _json_entries if name == "json.log" else _local_entries
    with path.open("rb") as file:
        file.seek(start)
        for stream, text in read(file):
            yield FRAME.pack(stream, len(text)) + text


def _json_entries(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for line in file:
        if not line.endswith(b"\n"):
            return  # dockerd is still writing it; the pipes are drained, so this does not happen to a whole entry
        entry = json.loads(line)
        yield STDERR if entry.get("stream") == "stderr" else STDOUT, entry["log"].encode()


def _local_entries(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        body = file.read(length)
        tail = file.read(_LENGTH.size)
        if len(body) < length or len(tail) < _LENGTH.size:
            return
        entry = fields(body)
        text = entry.get(3, b"")
        assert isinstance(text, bytes)
        stream = STDERR if entry.get(1) == b"stderr" else STDOUT
        yield stream, text if entry.get(4) else text + b"\n"
