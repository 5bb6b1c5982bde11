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


async def test_a_container_is_watched_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    seen = iter([(100, 3 << 20), (100, 5 << 20)])

    def look(pid: int, tasks: list[int]) -> tuple[int, int]:
        done.append(f"look at {pid}: {tasks}")
        return next(seen)

    monkeypatch.setattr(dirty, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(dirty, "_take_away", lambda tasks: done.append(f"take away {tasks}"))
    monkeypatch.setattr(dirty, "look", look)
    written = await dirty.watch(7, iter([7, 8]))
    assert done == ["take away [7, 8]", "look at 7: [7, 8]", "look at 7: [7, 8]"]
    assert (written.soon, written.later) == (3 << 20, 5 << 20)
    assert 0 < written.soon_seconds < written.later_seconds


def test_what_is_written_in_longer_goes_on_as_between_the_looks() -> None:
    written = dirty.Written(10, 0.5, 30, 1.0)
    assert (written.after(0.1), written.after(0.5), written.after(2.5)) == (10, 10, 90)
    assert dirty.Written(30, 0.5, 10, 1.0).after(60) == 30, "it has given memory back meanwhile"


def test_marks_are_taken_away_and_come_back_where_the_kernel_has_them() -> None:
    ballast = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ballast.write(bytes(1 << 20))
    before = dirty.written_bytes(Path("/proc/self"))
    dirty._take_away([os.getpid(), 1 << 30])
    after = dirty.written_bytes(Path("/proc/self"))
    assert after < before or before == 0
    assert bytes(ballast[:4]) == bytes(4), "nothing else has changed"
