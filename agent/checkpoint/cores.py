"""CRIU's image of each thread (core-ID.img): calls that the dump has interrupted are made again when it is restored.

Which and how, calls.py says; here is where the registers are. Layout: CRIU's images/core.proto, core-x86.proto.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from agent.base.protobuf import fields, inner, packed, repeated, replaced, varint
from agent.checkpoint import calls

HEAD = 8
SIZE = struct.Struct("<I")
X86, TASK, THREAD = 2, 3, 5
REGISTERS, SHARED_SIGNALS, BLOCKED, OWN_SIGNALS = 2, 10, 6, 9
"""In the first of these; in that of a process; and two in that of a thread."""
PROCESS, THREADS = 1, 5
"""Of an entry in the list of processes."""
NUMBERS = {"r10": 8, "r9": 9, "ax": 11, "dx": 13, "si": 14, "di": 15, "orig_ax": 16, "ip": 17}
MODE, COMPAT = 28, 2
INTERRUPTED = packed(NUMBERS["ax"], (1 << 64) - calls.EINTR)


def mend(folder: Path) -> int:
    """Let the calls that were interrupted be made again; how many had to be told.

    Most threads have none, and are only looked through: some 15 microseconds each.
    """
    mended, shared = 0, None
    for name in os.listdir(folder):  # noqa: PTH208 - one for each thread, and all wait for it
        if name.startswith("core-") and INTERRUPTED in (data := (folder / name).read_bytes()):
            entry = next(_entries(data), b"")
            x86 = inner(entry, X86)
            told = _made_again(inner(x86, REGISTERS))
            if told is None:
                continue
            shared = shared or _shared_signals(folder)
            if not _signal_waits(inner(entry, THREAD), shared[int(name[len("core-") : -len(".img")])]):
                entry = replaced(entry, X86, replaced(x86, REGISTERS, told))
                (folder / name).write_bytes(data[:HEAD] + SIZE.pack(len(entry)) + entry)
                mended += 1
    return mended


def _made_again(registers: bytes) -> bytes | None:
    """The registers as they have to be for their call to be made again; None if it is none of these."""
    values = fields(registers)
    if not values:
        return None
    found = {name: int(values[number]) for name, number in NUMBERS.items()}
    changed = calls.again(found)
    if changed is None or values.get(MODE) == COMPAT:
        return None
    changed |= {"ax": changed.pop("orig_ax"), "ip": found["ip"] - calls.SIZE}
    # of two values the later one counts
    return registers + b"".join(packed(NUMBERS[name], value) for name, value in changed.items())


def _signal_waits(thread: bytes, shared: bytes) -> bool:
    """Whether a thread has a signal to take as soon as it runs: that is to find the call interrupted, as ever."""
    found = fields(thread)
    own, blocked = found.get(OWN_SIGNALS, b""), int(found.get(BLOCKED, 0))
    for queue in (own if isinstance(own, bytes) else b"", shared):
        for each in repeated(queue, 1):
            (number,) = SIZE.unpack_from(inner(each, 1))  # a siginfo_t begins with it
            if not blocked >> (number - 1) & 1:
                return True
    return False


def _shared_signals(folder: Path) -> dict[int, bytes]:
    """What waits for the whole process of each thread."""
    found: dict[int, bytes] = {}
    for entry in _entries((folder / "pstree.img").read_bytes()):
        leader = folder / f"core-{int(fields(entry)[PROCESS])}.img"
        signals = inner(next(_entries(leader.read_bytes()), b""), TASK, SHARED_SIGNALS)
        found |= dict.fromkeys((varint(each, 0)[0] for each in repeated(entry, THREADS)), signals)
    return found


def _entries(data: bytes) -> Iterator[bytes]:
    at = HEAD
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        entry = data[at + SIZE.size : at + SIZE.size + size]
        if len(entry) < size:
            raise ValueError("an image of CRIU's ends within an entry")
        yield entry
        at += SIZE.size + size
