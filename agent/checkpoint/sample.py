"""A little of a container's memory, to see how well it compresses; the container runs on meanwhile."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

PAGE = 4096
PRESENT = 1 << 63
WANTED = 2 << 20
RUN = 16
"""Pages in a row; the next ones are somewhere else."""


def memory(pids: Iterable[int], wanted: int = WANTED) -> bytes:
    """Up to `wanted` bytes from all over what is resident and private; blocks for some milliseconds.

    Pages that were never touched are left out: no dump has them. Empty where there is nothing, or the tasks are gone.
    """
    areas = [(pid, start, end) for pid in pids for start, end in _private(pid)]
    pages = sum((end - start) // PAGE for _, start, end in areas)
    step = max(pages * PAGE // max(wanted, 1), 1) * RUN
    found = bytearray()
    for pid, start, end in areas:
        with contextlib.suppress(OSError):
            for run in _resident(pid, start, end, step):
                found += run
                if len(found) >= wanted:
                    return bytes(found[:wanted])
    return bytes(found)


def _private(pid: int) -> Iterator[tuple[int, int]]:
    """Writable private areas: what makes up most of a dump."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
        for line in maps:
            area, mode = line.split(None, 2)[:2]
            if mode == "rw-p" and "[v" not in line:
                start, _, end = area.partition("-")
                yield int(start, 16), int(end, 16)


def _resident(pid: int, start: int, end: int, step: int) -> Iterator[bytes]:
    """Every `step` pages a run of those that are there."""
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for at in range(start, end, step * PAGE):
                count = min(RUN, (end - at) // PAGE)
                entries = os.pread(pagemap, 8 * count, at // PAGE * 8)
                there = [entry & PRESENT for (entry,) in struct.iter_unpack("=Q", entries)]
                if there and all(there):
                    yield os.pread(memory, count * PAGE, at)
        finally:
            os.close(memory)
    finally:
        os.close(pagemap)
