"""What is mended in CRIU's images before they are restored. Their layout: criu/include/magic.h, images/*.proto."""

import struct
from pathlib import Path

from agent.base.protobuf import fields, packed, varint

FILES = "files.img"
MAGIC = struct.Struct("<II")
SIZE = struct.Struct("<I")
TIMERFD = 12
"""In a file's entry; in a timer's are the others."""
TICKS, LEFT_S, LEFT_NS, EVERY_S, EVERY_NS = 5, 7, 8, 9, 10


def mend(folder: Path) -> int:
    """Let the periodic timers go on; how many had to be told.

    The kernel does not run a periodic timerfd on while a tick of it waits to be read: nothing is left of its time then,
    and CRIU (4.2: criu/timerfd.c) restores that as a timer which is off. It is set to the whole of its period instead.
    Between the freeze and the dump a tick comes to every timer that is fast enough.
    """
    path = folder / FILES
    data = path.read_bytes()
    mended, result, at = 0, bytearray(data[: MAGIC.size]), MAGIC.size
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        entry = data[at + SIZE.size : at + SIZE.size + size]
        at += SIZE.size + size
        if (timer := _stopped(entry)) is not None:
            entry = _replaced(entry, TIMERFD, timer)
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


def _replaced(message: bytes, number: int, content: bytes) -> bytes:
    """The message with another content of one field."""
    result, at = bytearray(), 0
    while at < len(message):
        began = at
        key, at = varint(message, at)
        length, at = varint(message, at)
        if key & 7 == 2:
            at += length
        result += packed(number, content) if key >> 3 == number else message[began:at]
    return bytes(result)
