"""One migration that leaves this host, as `Sources` keeps it; and what its errors amount to."""

import asyncio
import logging
from dataclasses import dataclass

from agent.base.errors import AgentError, Refused, StepFailed
from agent.doors.docker import unavailable
from agent.migration import machine
from agent.migration.run import Run
from protocol.errors import Consequence
from protocol.status import Phase

log = logging.getLogger("agent.source")


@dataclass(slots=True)
class Move:
    """One migration under way."""

    run: Run
    container_id: str
    task: asyncio.Task[None] | None = None
    stop: AgentError | None = None
    """Why it was cancelled, where it was."""
    ending: bool = False
    """It is taken up again, or taken back: nothing but the agent's own end cuts that short."""

    @property
    def may_cancel(self) -> bool:
        return not self.ending and not self.run.deciding and machine.may_cancel(self.run.phase)


def untouched(error: AgentError) -> AgentError:
    """An error that came before anything was done, as the refusal that it amounts to."""
    if error.consequence is Consequence.UNTOUCHED:
        return error
    return unavailable(error) or Refused(error.code, error.message, hint=error.hint, detail=error.detail)


def foreseen(failure: Exception) -> AgentError:
    """What failed, as an error that can be told; a bug is logged."""
    if isinstance(failure, AgentError):
        return failure
    log.error("a failure that was not foreseen", exc_info=failure)
    return StepFailed(f"{type(failure).__name__}: {failure}", hint="a bug: the agent's log has the traceback")


def waits(run: Run) -> bool:
    """It runs at the target by post-copy, and the rest of its memory can't get there, as far as is known."""
    return run.phase is Phase.RUNNING and run.doubt is not None
