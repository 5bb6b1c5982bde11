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

GRACE_SECONDS = 10.0
"""Given to a step that is past its deadline to end after its cancel; then the others go on without it."""


class Undo:
    """`async with Undo() as undo:` - on any exception, a cancel included, the steps run last-first.

    They run in tasks of their own, shielded: a second cancel only waits for them. A step that fails, hangs or is
    itself cancelled does not stop the others; it becomes a note on the exception and an entry in `failed`.
    """

    def __init__(
        self,
        step_seconds: float = STEP_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        failed: list[str] | None = None,
    ) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._step_seconds = step_seconds
        self._grace_seconds = grace_seconds
        self.failed: list[str] = failed if failed is not None else []

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
                await asyncio.wait({task})
            except asyncio.CancelledError:
                cancels += 1  # noted; the steps go on
        if task.cancelled():  # the event loop is being closed under us
            self.failed += [f"{what}: not done, the agent was ended" for what, _ in reversed(self._steps)]
        for failure in self.failed:
            error.add_note(f"undo failed: {failure}")
        if cancels and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from error

    async def _run(self) -> None:
        while self._steps:
            what, call = self._steps[-1]
            log.info("undo: %s", what)
            failure = await self._step(what, call)
            self._steps.pop()
            if failure:
                self.failed.append(f"{what}: {failure}")

    async def _step(self, what: str, call: Callable[[], Awaitable[object]]) -> str:
        """Take one step; return why it failed, or nothing."""
        step = asyncio.create_task(_await(call), name=f"undo: {what}")
        # A wait, and no asyncio.timeout: that would wait for ever on a step that does not let itself be cancelled.
        await asyncio.wait({step}, timeout=self._step_seconds)
        if not step.done():
            step.add_done_callback(
                lambda late: late.cancelled() or late.exception()
            )  # read, not to be reported as lost
            step.cancel()
            await asyncio.wait({step}, timeout=self._grace_seconds)
            still = "" if step.done() else ", and still goes on"
            log.error("undo failed: %s took longer than %g s%s", what, self._step_seconds, still)
            return f"took longer than {self._step_seconds:g} s{still}"
        if step.cancelled():
            log.error("undo failed: %s was cancelled", what)
            return "was cancelled"
        error = step.exception()
        if error is None:
            return ""
        log.error("undo failed: %s", what, exc_info=error)
        return str(error) or type(error).__name__


async def _await(call: Callable[[], Awaitable[object]]) -> None:
    await call()
