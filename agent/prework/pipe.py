"""A thread and the event loop, side by side: a bounded pipe of chunks, and the thread itself.

Neither side runs ahead of the other. Whichever ends first, by cancel or by error, closes the pipe, which
makes the other side's next call fail. Nobody leaves before the thread has ended.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_CHUNKS_AHEAD = 4


class PipeClosedError(Exception):
    """The other side is not there any more; what it has to say about that is said there."""


class Pipe:
    """Chunks from a thread to the event loop, or back. What ends in `_blocking` is for the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._lock = threading.Condition()
        self._changed = asyncio.Event()
        self._ended = False
        self._closed = False

    def put_blocking(self, chunk: bytes) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._closed or len(self._chunks) < _CHUNKS_AHEAD)
            self.check_blocking()
            self._chunks.append(chunk)
        self._wake_loop()

    def get_blocking(self) -> bytes:
        """The next chunk; b"" at the end."""
        with self._lock:
            self._lock.wait_for(lambda: self._closed or self._ended or self._chunks)
            self.check_blocking()
            chunk = self._chunks.popleft() if self._chunks else b""
        self._wake_loop()
        return chunk

    def check_blocking(self) -> None:
        if self._closed:
            raise PipeClosedError

    async def put(self, chunk: bytes) -> None:
        while True:
            self._changed.clear()
            with self._lock:
                self.check_blocking()
                if len(self._chunks) < _CHUNKS_AHEAD:
                    self._chunks.append(chunk)
                    self._lock.notify_all()
                    return
            await self._changed.wait()

    async def get(self) -> bytes | None:
        """The next chunk; None at the end."""
        while True:
            self._changed.clear()
            with self._lock:
                if self._chunks:
                    self._lock.notify_all()
                    return self._chunks.popleft()
                if self._ended or self._closed:
                    return None
            await self._changed.wait()

    def end(self) -> None:
        """Nothing more will be put, what was put can still be got. From either side."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()
        self._wake_loop()

    def close(self) -> None:
        """Nobody needs any of it. From either side."""
        with self._lock:
            self._closed = True
            self._chunks.clear()
            self._lock.notify_all()
        self._wake_loop()

    def _wake_loop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)


class Worker(Generic[T]):
    """One function in a thread of its own, not in the loop's pool: it may wait for the peer for long."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[T] = self._loop.create_future()
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self.done.set_exception, error)
        else:
            self._loop.call_soon_threadsafe(self.done.set_result, result)

    async def result(self) -> T:
        """What the function returned, or raised."""
        return await asyncio.shield(self.done)

    async def ended(self) -> None:
        """Wait for the thread's end, however it ended. It was told to before: a cancel has to wait only for that."""
        cancelled: asyncio.CancelledError | None = None
        while not self.done.done():
            try:
                await asyncio.wait([self.done])
            except asyncio.CancelledError as error:
                cancelled = error
        self._thread.join()
        self.done.exception()  # seen: it is of interest only to whoever awaited the result
        if cancelled is not None:
            raise cancelled
