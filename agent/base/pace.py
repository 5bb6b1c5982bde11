"""A rate in bytes a second that may be changed while it is kept to."""

import asyncio
import contextlib
import time


class Pace:
    """Whoever shares one keeps to it together. None: as fast as it goes."""

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._free_at = 0.0
        """When what was taken so far will have gone at this rate."""
        self._changed = asyncio.Event()

    @property
    def rate(self) -> int | None:
        return self._rate

    def change(self, rate: int | None) -> None:
        """Whoever waits just now goes on at the new rate at once: what was taken before is not counted to it."""
        self._rate = rate
        self._free_at = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Wait until as much may be sent: after what was taken before it has had its time."""
        while (rate := self._rate) is not None and (wait := self._free_at - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
        if rate is not None:
            self._free_at = max(self._free_at, time.monotonic()) + count / rate
