"""What a dump would have to send now: marks of the kernel, and all that is in no round."""

import mmap
import os
import struct
from pathlib import Path

import pytest

from agent.checkpoint import dirty

PRESENT, SWAPPED, OF_A_FILE, WRITTEN = 1 << 63, 1 << 62, 1 << 61, 1 << 55


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        (PRESENT | WRITTEN, True),
        (PRESENT | WRITTEN | 0x7FFFFF, True),  # with a frame's number
        (SWAPPED | WRITTEN, True),
        (PRESENT, False),  # it went with a round
        (SWAPPED, False),
        (PRESENT | WRITTEN | OF_A_FILE, False),  # never written to: it is still the file's page
        (WRITTEN, False),  # nothing is there
        (0, False),
    ],
)
def test_a_page_counts_if_it_is_there_its_own_and_written_since(entry: int, counts: bool) -> None:
    others = [0, PRESENT, PRESENT | WRITTEN, OF_A_FILE | PRESENT | WRITTEN] * 3
    words = struct.pack(f"<{len(others) + 1}Q", *others[:5], entry, *others[5:])
    assert dirty.marked(words) == 3 + counts
    assert dirty.marked(b"") == 0


def test_a_process_s_own_memory_is_looked_at_and_one_that_has_ended_has_none() -> None:
    ballast = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(ballast), mmap.PAGESIZE):
        ballast[at] = 1
    mappings = dirty._mappings(Path("/proc/self"))
    assert any(used >= 4 << 20 for _, _, used in mappings)
    assert all(start < end and used <= end - start for start, end, used in mappings)
    total, left = dirty.look(os.getpid(), [os.getpid()])
    assert total >= 4 << 20
    assert 0 <= left <= total + (64 << 20)
    assert dirty.written_bytes(Path("/proc/0")) == 0
