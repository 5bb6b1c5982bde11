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
    mended = 0
    for name in os.listdir(folder):  # noqa: PTH208 - one for each thread, and all wait for it
        if name.startswith("core-") and INTERRUPTED in (data := (folder / name).read_bytes()):
            entry = next(_entries(data), b"")
            registers = inner(entry, X86, REGISTERS)
            if registers and (told := _made_again(registers)) and not _signal_waits(folder, name, entry):
                entry = replaced(entry, X86, replaced(inner(entry, X86), REGISTERS, told))
                (folder / name).write_bytes(data[:HEAD] + SIZE.pack(len(entry)) + entry)
                mended += 1
    return mended


def _made_again(registers: bytes) -> bytes | None:
    """The registers as they have to be for their call to be made again; None if it is none of these."""
    values = fields(registers)
    found = {name: int(values[number]) for name, number in NUMBERS.items()}
    changed = calls.again(found)
    if changed is None or values.get(MODE) == COMPAT:
        return None
    changed |= {"ax": changed.pop("orig_ax"), "ip": found["ip"] - calls.SIZE}
    # of two values the later one counts
    return registers + b"".join(packed(NUMBERS[name], value) for name, value in changed.items())


def _signal_waits(folder: Path, name: str, entry: bytes) -> bool:
    """Whether a thread has a signal to take as soon as it runs: that is to find the call interrupted, as ever."""
    leader = folder / f"core-{_process_of(folder, int(name[len('core-') : -len('.img')]))}.img"
    shared = inner(next(_entries(leader.read_bytes()), b""), TASK, SHARED_SIGNALS)
    blocked = fields(inner(entry, THREAD)).get(BLOCKED, 0)
    for queue in (inner(entry, THREAD, OWN_SIGNALS), shared):
        for each in repeated(queue, 1):
            (number,) = SIZE.unpack_from(inner(each, 1))  # a siginfo_t begins with it
            if not int(blocked) >> (number - 1) & 1:
                return True
    return False


def _process_of(folder: Path, thread: int) -> int:
    for entry in _entries((folder / "pstree.img").read_bytes()):
        if thread in (varint(each, 0)[0] for each in repeated(entry, THREADS)):
            return int(fields(entry)[PROCESS])
    raise KeyError(f"a thread of no process: {thread}")


def _entries(data: bytes) -> Iterator[bytes]:
    at = HEAD
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        entry = data[at + SIZE.size : at + SIZE.size + size]
        if len(entry) < size:
            raise ValueError("an image of CRIU's ends within an entry")
        yield entry
        at += SIZE.size + size
