"""How much memory a dump would have to send now, after a pre-dump: what was written since, by the kernel's own marks.

The kernel marks a page when it is written (soft-dirty), and CRIU takes the marks away when it has read the page in a
round. Reading them changes nothing, and the container runs on meanwhile.

Before there is a round, a look for a second tells how fast it writes: the marks are taken away and counted twice.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.checkpoint import measure, proc

PAGE = 4096
LARGEST = 64 << 30
"""Of a mapping whose marks are read, eight bytes a page: programs reserve more than they ever use."""
READ = 1 << 20
LOOK_SECONDS = 0.5
"""Between two looks at what is written."""
SOFT_DIRTY = "4"
"""For /proc/PID/clear_refs: the marks alone, which a first round takes away all the same."""


@dataclass(frozen=True, slots=True)
class Written:
    """How many different bytes a container has written after so many seconds, and after about twice as many.

    The second look tells one that writes to the same place again and again from one that goes on to others.
    """

    soon: int
    soon_seconds: float
    later: int
    later_seconds: float

    @property
    def more(self) -> float:
        """Bytes a second that come to what was written soon."""
        return max(0, self.later - self.soon) / max(self.later_seconds - self.soon_seconds, 1e-3)

    def after(self, seconds: float) -> float:
        """What it writes in so long; not less than was seen soon."""
        return self.soon + self.more * max(0.0, seconds - self.soon_seconds)


async def watch(pid: int, tasks: Iterable[int]) -> Written:
    """Take the marks away and see how many come back; what is in no round counts as written.

    It is for a container that nobody else takes memory of: an image of it would lack what was marked before.
    """
    pids = list(tasks)
    await asyncio.to_thread(_take_away, pids)
    began = time.monotonic()
    await asyncio.sleep(LOOK_SECONDS)
    _, soon = await asyncio.to_thread(look, pid, pids)
    soon_seconds = time.monotonic() - began
    await asyncio.sleep(LOOK_SECONDS)
    _, later = await asyncio.to_thread(look, pid, pids)
    return Written(soon, soon_seconds, later, time.monotonic() - began)


def _take_away(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            Path(f"/proc/{pid}/clear_refs").write_text(SOFT_DIRTY)


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
