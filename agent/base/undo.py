"""The undo stack: beside each act its way back, taken last-first when the story fails, dropped at the commit point.

An undo step means "make sure it is not so": it is pushed before the act and is safe when there is nothing to undo.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("agent.undo")

STEP_SECONDS = 60.0
"""Deadline of one undo step: longer than Docker's own stop and remove take together."""


class Undo:
    """`async with Undo() as undo:` - on any exception, a cancel included, the steps run last-first.

    They run in a task of their own, shielded: a second cancel only waits for them. A step that fails does not stop
    the others; it becomes a note on the exception and an entry in `failed`.
    """

    def __init__(self, step_seconds: float = STEP_SECONDS) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._step_seconds = step_seconds
        self.failed: list[str] = []

    def first(self, what: str, call: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Push the way back of the act that comes next in the code."""
        self._steps.append((what, lambda: call(*args)))

    def detach(self) -> None:
        """Forget all steps: from here on nothing is taken back."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.detach()
            return
        task = asyncio.create_task(self._run(), name="undo")
        cancels = 0
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    break
                cancels += 1  # noted; the steps go on
        for failure in self.failed:
            error.add_note(f"undo failed: {failure}")
        if cancels and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from error

    async def _run(self) -> None:
        while self._steps:
            what, call = self._steps.pop()
            log.info("undo: %s", what)
            try:
                async with asyncio.timeout(self._step_seconds):
                    await call()
            except Exception as error:  # the other steps must run whatever this one does
                log.exception("undo failed: %s", what)
                self.failed.append(f"{what}: {error or type(error).__name__}")
