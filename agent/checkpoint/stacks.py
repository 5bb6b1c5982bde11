"""Memory that CRIU takes for a stack, and so dumps at once in post-copy, instead of leaving it for later.

CRIU (4.2, criu/mem.c, is_stack) means to dump the page at once that a thread's stack pointer points to. It compares
the wrong end of the addresses: their offsets in a page. So where a stack pointer is at the very beginning of a page,
which is so for one thread in 256, every page of that process is taken for a stack; of all others none is.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from agent.checkpoint import proc

PAGE = os.sysconf("SC_PAGE_SIZE")


def dumped_at_once(pids: Iterable[int]) -> int:
    """Bytes of memory that post-copy would send in the blackout, by what the threads of these processes do just now.

    What a thread does that runs can't be told: most of them wait. Blocks for some 20 us a thread.
    """
    return sum(found.private_bytes for pid in pids if _is_taken(pid) and (found := proc.task(pid)) is not None)


def _is_taken(pid: int) -> bool:
    try:
        return any(_stack_pointer(thread) % PAGE == 0 for thread in Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it has ended
        return False


def _stack_pointer(thread: Path) -> int:
    """By proc(5) the last but one word of `syscall`: of a thread that waits, in a call or elsewhere; 1 if unknown."""
    try:
        words = (thread / "syscall").read_text().split()
    except OSError:
        return 1
    return int(words[-2], 16) if len(words) > 1 else 1
