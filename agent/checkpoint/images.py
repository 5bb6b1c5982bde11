"""What is mended in CRIU's images before they are restored. Their layout: criu/include/magic.h, images/*.proto."""

import shutil
import struct
from pathlib import Path

from agent.base.errors import CorruptPart
from agent.base.protobuf import fields, packed, replaced
from agent.checkpoint import cores

FILES = "files.img"
MAGIC = struct.Struct("<II")
SIZE = struct.Struct("<I")
TIMERFD = 12
"""In a file's entry; in a timer's are the others."""
TICKS, LEFT_S, LEFT_NS, EVERY_S, EVERY_NS = 5, 7, 8, 9, 10
IN_SEQ, SEND_WL1, RECEIVE_WINDOW = 2, 13, 16
SEQUENCE = 1 << 32
LARGEST = 1 << 20
"""Of an entry that is read; they have some hundred bytes."""


def mend(folder: Path) -> int:
    """Let what CRIU has dumped be restored as it was; how many entries had to be told.

    Raises:
        CorruptPart: an image is none.

    """
    try:
        windows = sum(_mend_window(path) for path in folder.glob("tcp-stream-*.img"))
        return _mend_timers(folder / FILES) + windows + cores.mend(folder)
    except (ValueError, KeyError, struct.error, FileNotFoundError) as error:
        raise CorruptPart(f"CRIU's images are not understood: {error}") from None


def _mend_window(path: Path) -> int:
    """Let a connection be restored whose receive queue was full; 1 if it had to be told.

    A receiver without memory shuts its window at once, to what it has taken in so far. A segment that came before that,
    behind a lost one, may be the last to have said how much its sender takes (snd_wl1): beyond the window now. The
    kernel does not take back what it gave out (net/ipv4/tcp.c: tcp_repair_set_window). The last place that it takes
    does the same: the number only tells later segments from earlier ones, and all within the window come later.
    """
    with path.open("rb") as image:
        magic = image.read(MAGIC.size)
        (size,) = SIZE.unpack(image.read(SIZE.size))
        entry = image.read(min(size, LARGEST))
        if len(entry) < size:
            raise ValueError(f"{path.name} ends within an entry")
        found = fields(entry)
        if RECEIVE_WINDOW not in found:
            return 0
        edge = (int(found[IN_SEQ]) + int(found[RECEIVE_WINDOW])) % SEQUENCE
        if not 0 < (int(found[SEND_WL1]) - edge) % SEQUENCE < SEQUENCE // 2:
            return 0
        entry += packed(SEND_WL1, edge)  # of two values the later one counts
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as mended:  # the queues behind it are up to some MiB each
            mended.write(magic + SIZE.pack(len(entry)) + entry)
            shutil.copyfileobj(image, mended)
        part.replace(path)
    return 1


def _mend_timers(path: Path) -> int:
    """Let the periodic timers go on; how many had to be told.

    The kernel does not run a periodic timerfd on while a tick of it waits to be read: nothing is left of its time then,
    and CRIU (4.2: criu/timerfd.c) restores that as a timer which is off. It is set to the whole of its period instead.
    Between the freeze and the dump a tick comes to every timer that is fast enough.
    """
    data = path.read_bytes()
    mended, result, at = 0, bytearray(data[: MAGIC.size]), MAGIC.size
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        entry = data[at + SIZE.size : at + SIZE.size + size]
        if len(entry) < size:
            raise ValueError(f"{path.name} ends within an entry")
        at += SIZE.size + size
        if (timer := _stopped(entry)) is not None:
            entry = replaced(entry, TIMERFD, timer)
            mended += 1
        result += SIZE.pack(len(entry)) + entry
    if mended:
        path.write_bytes(result)
    return mended


def _stopped(entry: bytes) -> bytes | None:
    """The timer as it has to be, if the entry is of one that would not go on."""
    timer = fields(entry).get(TIMERFD)
    if not isinstance(timer, bytes):
        return None
    found = fields(timer)
    every_s, every_ns = int(found.get(EVERY_S, 0)), int(found.get(EVERY_NS, 0))
    if not found.get(TICKS) or found.get(LEFT_S) or found.get(LEFT_NS) or not (every_s or every_ns):
        return None
    return timer + packed(LEFT_S, every_s) + packed(LEFT_NS, every_ns)  # of two values the later one counts
