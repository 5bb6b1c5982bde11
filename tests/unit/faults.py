"""What fails at will, and what waits: the part that every fake door has. No tests."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

WATCHDOG_SECONDS = 20.0
"""A bound on what a test waits for; never how it waits."""


class Faults:
    """What fails, and what has to wait: by the name of a call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: Counter[str] = Counter()
        """How often a call fails still."""
        self._gates: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self._reached: list[tuple[Callable[[], bool], asyncio.Event]] = []

    def note(self, name: str) -> None:
        self.calls.append(name)
        self._look()

    async def call(self, name: str, error: Callable[[], Exception]) -> None:
        self.note(name)
        if self.failing[name] > 0:
            self.failing[name] -= 1
            raise error()
        if name in self._gates:
            arrived, opened = self._gates[name]
            arrived.set()
            await opened.wait()

    @contextlib.asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[asyncio.Event]:
        """Within the block a call of that name waits; the event says that one has come."""
        arrived, opened = self._gates[name] = asyncio.Event(), asyncio.Event()
        try:
            yield arrived
        finally:
            del self._gates[name]
            opened.set()

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait for something that can only become true with a call."""
        event = asyncio.Event()
        self._reached.append((so, event))
        self._look()
        async with asyncio.timeout(WATCHDOG_SECONDS):
            await event.wait()

    def _look(self) -> None:
        for so, event in self._reached:
            if so():
                event.set()


FOR_EVER = 10**9
