"""How much memory a dump would have to send now, after a pre-dump: what was written since, by the kernel's own marks.

The kernel marks a page when it is written (soft-dirty), and CRIU takes the marks away when it has read the page in a
round. Reading them changes nothing, and the container runs on meanwhile.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent.checkpoint import measure, proc

PAGE = 4096
LARGEST = 64 << 30
"""Of a mapping whose marks are read, eight bytes a page: programs reserve more than they ever use."""
READ = 1 << 20


def look(pid: int, tasks: Iterable[int]) -> tuple[int, int]:
    """Bytes of all images of a container whose first process is `pid`, and those of a dump now; blocks for some
    milliseconds.

    What is shared, in tmpfs, in files without a name or in sockets is in no round: all of it is left.
    """
    pids = list(tasks)
    total, private = measure.image_bytes(pid, pids), sum(_private(task) for task in pids)
    return total, max(0, total - private) + sum(written_bytes(Path(f"/proc/{task}")) for task in pids)


def _private(pid: int) -> int:
    found = proc.task(pid)
    return found.private_bytes if found is not None else 0


def written_bytes(process: Path) -> int:
    """Of a process's private memory; 0 if it has ended."""
    total = 0
    with contextlib.suppress(OSError, ValueError), (process / "pagemap").open("rb", buffering=0) as marks:
        for start, end, used in _mappings(process):
            if end - start > LARGEST:
                total += used
                continue
            at = start // PAGE * 8
            while at < end // PAGE * 8:
                data = os.pread(marks.fileno(), min(READ, end // PAGE * 8 - at), at)
                if not data:
                    break
                total += marked(data) * PAGE
                at += len(data)
    return total


def _mappings(process: Path) -> list[tuple[int, int, int]]:
    """Private mappings that hold anything of their own: beginning, end, bytes."""
    found: list[tuple[int, int, int]] = []
    start = end = used = 0
    private = False
    for line in (process / "smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Anonymous", "Swap") and private:
            used += int(rest.split()[0]) * 1024
        elif "-" in (word := line.split(" ", 1)[0]) and not line[:1].isupper():
            if used:
                found.append((start, end, used))
            start, end = (int(part, 16) for part in word.split("-"))
            private, used = line.split()[1].endswith("p"), 0
    return [*found, (start, end, used)] if used else found


def marked(entries: bytes) -> int:
    """How many pages are there, are no file's, and were written since; by words of /proc/PID/pagemap, all at once."""
    count = len(entries) // 8
    # of each word, bit 55 says written since, 63 and 62 that it is in memory or swapped out, 61 that it is a file's
    low = int.from_bytes(entries[6 : count * 8 : 8], "little")
    high = int.from_bytes(entries[7 : count * 8 : 8], "little")
    top = int.from_bytes(b"\x80" * count, "little")
    return (low & (high | high << 1) & ~(high << 2) & top).bit_count()
