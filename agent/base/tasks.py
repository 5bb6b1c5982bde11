"""Two things at once: both end before the caller goes on, and one clear error comes out."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

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
