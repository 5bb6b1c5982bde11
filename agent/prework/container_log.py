"""A container's log as dockerd keeps it, json-file or local: its files for the first pass, its entries for the delta.

dockerd notes a log's size when it opens it at the start, and reads no further: what is there before the start is shown,
what is put into the file behind its back is cut off. So the files of the first pass are laid down before the start, and
the entries that came after are printed again at the target, through the pipes that the container prints to.
"""

import gzip
import json
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from agent.base.errors import CorruptPart, StepFailed
from agent.base.protobuf import fields

STDOUT, STDERR = 1, 2
FRAME = struct.Struct(">BI")
"""One entry in the delta: the stream's number, the length of what follows."""
MOST_ROTATED = 100
LOOKS = 100
WRITE_SECONDS = 0.001
"""Between two looks at an entry that is being written; that takes some microseconds."""
BEGIN = 1 << 14
CURRENT = ("json.log", "local.log")
NOTHING_SEEN = "\u2060\u2060\u2060".encode()
"""Word joiners: a line of them looks empty, and nobody prints it by chance."""
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
    """The log at one moment: its files, held open, so that a rotation takes nothing away; the current one first."""

    name: str
    held: Mapping[str, BinaryIO]
    size: int
    """How far the current one had come."""

    def segments(self) -> Iterator[tuple[str, Path, int]]:
        """What there was: a file's name on the wire, where it can be read whatever it is called now, and its size."""
        for name, file in self.held.items():
            size = self.size if name == self.name else os.fstat(file.fileno()).st_size
            yield name, Path(f"/proc/self/fd/{file.fileno()}"), size

    def close(self) -> None:
        for file in self.held.values():
            file.close()


def mark(files: Mapping[str, Path]) -> Mark | None:
    """Where the log ends now; None where dockerd keeps none (driver none, journald, ...).

    Raises:
        StepFailed: it is rotated faster than it can be looked at.

    """
    for _ in range(LOOKS):
        name = next((name for name in CURRENT if files[name].exists()), None)
        if name is None:
            return None
        held = dict(_existing(name, files))
        if name in held and _is(files[name], held[name]):
            return Mark(name, held, _whole(name, held[name]))
        for file in held.values():
            file.close()
    raise StepFailed("the container's log is rotated all the time", hint="give its log a larger max-size")


def _whole(name: str, file: BinaryIO) -> int:
    """The size of a log up to the end of an entry: while dockerd writes one the kernel shows it page by page.

    What was cut in the middle would spoil the target's log: entries come after it there. One that nobody completes was
    cut by the end of an earlier dockerd; it goes along as it is.
    """
    ends = _json_ends if name == "json.log" else _local_ends
    for look in range(LOOKS):
        if look:
            time.sleep(WRITE_SECONDS)
        size = os.fstat(file.fileno()).st_size
        if size == 0 or ends(file.fileno(), size):
            break
    return size


def _json_ends(fd: int, size: int) -> bool:
    return os.pread(fd, 1, size - 1) == b"\n"


def _local_ends(fd: int, size: int) -> bool:
    """Whether what stands there is the length that the entry also has in front of it."""
    tail = os.pread(fd, _LENGTH.size, max(size - _LENGTH.size, 0))
    if len(tail) < _LENGTH.size:
        return False
    begin = size - 2 * _LENGTH.size - _LENGTH.unpack(tail)[0]
    return begin >= 0 and os.pread(fd, _LENGTH.size, begin) == tail


def _existing(current: str, files: Mapping[str, Path]) -> Iterator[tuple[str, BinaryIO]]:
    """The files of a log, newest first; a rotated one as it is, or packed, and not both while dockerd packs it."""
    for names in [
        (current,),
        *((f"{current}.{number}", f"{current}.{number}.gz") for number in range(1, MOST_ROTATED)),
    ]:
        for name in names:
            try:
                file = files[name].open("rb")
            except FileNotFoundError:
                continue
            yield name, file
            break


def _is(path: Path, file: BinaryIO) -> bool:
    """No inode number is used again while a file is held."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def entries_since(files: Mapping[str, Path], since: Mark) -> list[tuple[int, bytes]]:
    """Stream and text of all entries written after the mark, rotations followed.

    Files that were rotated away altogether are left out, as `docker logs` does.

    Raises:
        EOFError: dockerd is packing one of them just now; try again.

    """
    read = _json_entries if since.name == "json.log" else _local_entries
    since.held[since.name].seek(since.size)
    with ExitStack() as stack:
        newer: list[BinaryIO] = []
        for name, opened in _existing(since.name, files):
            file = stack.enter_context(opened)
            if name.endswith(".gz"):
                file = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file)))
            if any(_is(files[name], held) or _begins_like(file, held) for held in since.held.values()):
                break
            newer.append(file)
        return [entry for file in (since.held[since.name], *reversed(newer)) for entry in read(file)]


def _begins_like(file: BinaryIO, held: BinaryIO) -> bool:
    """Packed, a file is another one, with the same entries; their times are in nanoseconds."""
    if not isinstance(file, gzip.GzipFile):
        return False
    begin = file.read(BEGIN)
    file.seek(0)
    return begin == os.pread(held.fileno(), BEGIN, 0)


class FrameCheck:
    """Frames as they come from a peer: whole, and of no other stream than the two that a container prints to.

    The runtime writes each to the descriptor of its number.
    """

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Look at what has come.

        Raises:
            CorruptPart: it is no frame of what a container has printed.

        """
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                continue
            missing = FRAME.size - len(self._head)
            self._head, data = self._head + data[:missing], data[missing:]
            if len(self._head) == FRAME.size:
                stream, self._left = FRAME.unpack(self._head)
                self._head = b""
                if stream not in (STDOUT, STDERR):
                    raise CorruptPart(f"what was printed is said to be of stream {stream}")

    def finish(self) -> None:
        """Raises CorruptPart if the last one was cut off."""
        if self._left or self._head:
            raise CorruptPart("what was printed was cut off")


def frames(entries: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """As the runtime reads them, to print them again."""
    for stream, text in entries:
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
        yield stream, text + b"\n" if _ends_line(entry) else text


def _ends_line(entry: Mapping[int, int | bytes]) -> bool:
    """A line that is longer than 16 KiB is in several entries, each but the last without its end."""
    about = entry.get(5, b"")
    assert isinstance(about, bytes)
    return not entry.get(4) or bool(fields(about).get(1))
