"""One migration that leaves this host, and all of them, as `Sources` keeps them; what errors amount to; and doubts."""

import asyncio
import logging
from dataclasses import dataclass

from agent.base.errors import AgentError, Refused, StepFailed, Stranded
from agent.doors.docker import unavailable
from agent.migration import machine
from agent.migration.rehearsal import Rehearsed
from agent.migration.run import Run
from protocol.errors import Consequence
from protocol.peer import DecisionKind
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


class Moves(dict[str, Move]):
    """By their ids; and what else keeps a container from being moved."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed: dict[str, Run] = {}
        """Containers of which a checkpoint is being taken, or that are being put to sleep."""
        self._ended = asyncio.Event()
        """Of the next one of all these that does."""

    def of_container(self, container_id: str) -> list[Move]:
        return [move for move in self.values() if move.container_id == container_id]

    def runs_of(self, container_id: str) -> list[Run]:
        """Everything that it is part of."""
        claimed = self.claimed.get(container_id)
        return [move.run for move in self.of_container(container_id)] + ([claimed] if claimed is not None else [])

    def is_decided(self, container_id: str) -> bool:
        """Whether it is another host's: what there is of it here is neither to run nor to be ended by anybody else."""
        runs = [move.run for move in self.of_container(container_id)]
        return any(run.deciding or machine.decision(run.phase) is DecisionKind.COMMIT for run in runs)

    def forget(self, migration: str) -> None:
        self.pop(migration, None)
        self._one_has_ended()

    def unclaim(self, container_id: str) -> None:
        self.claimed.pop(container_id, None)
        self._one_has_ended()

    def _one_has_ended(self) -> None:
        self._ended.set()
        self._ended = asyncio.Event()

    async def until_free(self, container_id: str) -> None:
        """Wait until it is part of nothing; for ever, where it is decided and the target does not answer."""
        while self.runs_of(container_id):
            await self._ended.wait()


def untouched(error: AgentError) -> AgentError:
    """An error that came before anything was done, as the refusal that it amounts to."""
    if error.consequence is Consequence.UNTOUCHED:
        return error
    return unavailable(error) or Refused(error.code, error.message, hint=error.hint, detail=error.detail)


async def took_back(move: Move, error: AgentError) -> AgentError | None:
    """Enter the end phase of a story that failed; the error, by what it means for the container.

    None: it was a rehearsal, whose end this is.
    """
    run = move.run
    if not machine.may_cancel(run.phase):
        return error  # decided: it goes on
    move.ending = True
    if isinstance(error, Rehearsed) and not run.undo_failed:
        await run.enter(Phase.ROLLED_BACK)
        return None
    there = Phase.ROLLED_BACK
    if run.undo_failed:
        there = Phase.STRANDED
        error = Stranded(
            f"{error.message}; and not all could be taken back: {'; '.join(run.undo_failed)}",
            hint="it is tried again until it works; the container may be frozen or without its network till then",
            detail=error.detail,
        )
    elif run.phase is Phase.PLANNED:
        there = Phase.REFUSED
        error = untouched(error)
    run.failure = error.info()
    await run.enter(there)
    return error


def foreseen(failure: Exception) -> AgentError:
    """What failed, as an error that can be told; a bug is logged."""
    if isinstance(failure, AgentError):
        return failure
    log.error("a failure that was not foreseen", exc_info=failure)
    return StepFailed(f"{type(failure).__name__}: {failure}", hint="a bug: the agent's log has the traceback")


def waits(run: Run) -> bool:
    """It runs at the target by post-copy, and the rest of its memory can't get there, as far as is known."""
    return run.phase is Phase.RUNNING and run.doubt is not None


def doubt(run: Run, role: str) -> str:
    """Why a migration may need a person, and what each answer risks; empty where it does not."""
    if run.phase is Phase.RUNNING and (run.doubt is not None or run.record.get("lost")):
        why = run.doubt.message if run.doubt is not None else "the rest of its memory can't come any more"
        return f"{why} (commit: it is ended where it runs, and started anew if its restart policy wants that)"
    if run.doubt is not None:
        return (
            f"decided, but {run.peer} has not confirmed: {run.doubt.message} "
            "(commit: the container is given up here; abort: it runs on here, twice if the peer runs it too)"
        )
    if role == "source" and run.phase is Phase.STRANDED:
        return "not all of it could be taken back yet; it is tried again and again (the agent's log says why it fails)"
    if role == "target" and run.phase is Phase.STRANDED:
        return (
            f"decided, and {run.how_gone}; {run.peer} has its own frozen still "
            "(abort there: it runs on there; abort here: what is left of the copy here is removed)"
        )
    if role == "target" and run.phase is Phase.PREPARED:
        if run.record.get("offer", {}).get("lazy"):
            return (
                f"waiting for the word of {run.peer}, and then for its memory, which is there "
                "(commit: runs here, as far as it can without; abort: lost if the source has given it up)"
            )
        return (
            f"waiting for the word of {run.peer} "
            "(commit: runs here, twice if the source runs on; abort: lost if the source has given it up)"
        )
    return ""
