"""The memory of this process: what a move, or the start, has used goes back to the kernel when nothing moves any more.

glibc keeps what is freed in the middle of its heap for the next that needs it.
"""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable

M_ARENA_MAX = -8
"""mallopt(3)."""
SECONDS = 2.0
"""After the start, and the last end of anything."""

log = logging.getLogger("agent.heap")


def one_arena() -> None:
    """From now on; one for each thread would keep what it once had."""
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class Heap:
    """Gives back, some time after each `wake`, unless it is `busy` then."""

    def __init__(self, busy: Callable[[], bool], seconds: float = SECONDS) -> None:
        self._busy = busy
        self._seconds = seconds
        self._waiting: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Something has ended, or gone on, or all is up."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._waiting = None
        if self._busy():
            self.wake()
            return
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
