"""How things are done: two at once, beside another, within a time, to the end, again and again. None is orphaned."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from agent.base.errors import AgentError, StepTimeout

log = logging.getLogger("agent.tasks")

A = TypeVar("A")
B = TypeVar("B")


async def both(one: Coroutine[Any, Any, A], other: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two coroutines at once; when one fails the other is cancelled and awaited, and the first error is raised.

    A TaskGroup raises a group; whoever asked for a move wants the one error that started it.
    """
    first = asyncio.create_task(one)
    second = asyncio.create_task(other)
    await _settled((first, second))
    return first.result(), second.result()


async def unless(work: Coroutine[Any, Any, A], failing: Coroutine[Any, Any, None]) -> A:
    """Do this as long as the other has not failed: then it is cancelled and awaited, and that error is raised.

    An end of the other without an error changes nothing.
    """
    doing, watching = asyncio.create_task(work), asyncio.create_task(failing)
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        return await doing
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def all_of(work: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
    """Like `both`, for any number of one kind."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    await _settled(tasks)
    return [task.result() for task in tasks]


async def _settled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have these go on while the block runs; they end with it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def within(seconds: float, what: str, hint: str = "") -> AsyncIterator[None]:
    """A deadline of the story.

    Raises:
        StepTimeout: the block took longer, and was cancelled.

    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise StepTimeout(f"{what} took longer than {seconds:g} s", hint=hint) from None


async def to_the_end(work: Coroutine[Any, Any, A]) -> A:
    """Do what must not be cut off in the middle; a cancel that comes meanwhile goes on when it is done."""
    task = asyncio.create_task(work)
    cancel: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as now:
            cancel = now
    if cancel is not None:
        raise cancel from (None if task.cancelled() else task.exception())
    return task.result()


async def in_own_thread(work: Callable[[], A]) -> A:
    """Do what blocks for as long as somebody else likes. A cancel leaves the thread to itself, and so does the end of
    the program, which would wait for one of asyncio's own.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[A] = loop.create_future()

    def settle(result: A | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="blocked by others", daemon=True).start()
    return await done


async def readable(fd: int) -> None:
    """Wait until there is something to read, or the other end is closed."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_reader, loop.remove_reader)


async def writable(fd: int) -> None:
    """Wait until there is room, or nobody to read."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_writer, loop.remove_writer)


async def _ready(fd: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]) -> None:
    # For the wait alone: it is told again and again while nobody does anything about it.
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def until_it_works(what: str, work: Callable[[], Awaitable[A]], pause: float) -> A:
    """Try for ever: for what must neither be left out nor left half done. Why it fails is logged once, each reason."""
    failing = Failing(what)
    while True:
        try:
            return await work()
        except Exception as error:
            failing.because(error)
        await asyncio.sleep(pause)


class Failing:
    """What is tried again and again: logs why it fails once, until it is something else."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""

    def because(self, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        if why != self._said:
            self._said = why
            bug = None if isinstance(error, AgentError) else error
            log.warning("%s has failed, and is tried again: %s", self._what, why, exc_info=bug)
