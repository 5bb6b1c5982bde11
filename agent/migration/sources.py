"""The migrations that leave this host: one task each, reported, cancelled, and taken up again after a crash."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from agent.base.errors import AgentError, Cancelled, ContainerGone, Refused, StepFailed, Stranded
from agent.doors.docker import unavailable
from agent.doors.docker_model import Container
from agent.doors.peer_client import PeerClient
from agent.migration import leaving, machine, preflight, source
from agent.migration.host import Host
from agent.migration.journal import Entry
from agent.migration.machine import OnRestart, Role
from agent.migration.run import Run
from agent.migration.subject import Subject, from_record
from agent.strategy import Strategy
from agent.strategy.cold import Cold
from protocol.base import new_migration_id
from protocol.commands import Migrate
from protocol.errors import Consequence, ErrorCode, ErrorInfo
from protocol.peer import DecisionKind
from protocol.status import Phase

log = logging.getLogger("agent.source")

PROGRESS_SECONDS = 0.2

Begun = Callable[[Run], Awaitable[None]]
Ended = Callable[[Run, AgentError | None], Awaitable[None]]


class Peers(Protocol):
    """Clients for peers."""

    def __call__(self, name: str, last_url: str = "") -> PeerClient: ...


class Watching(Protocol):
    """Who is told of a migration's way."""

    async def changed(self, run: Run, error: ErrorInfo | None) -> None: ...
    async def decided(self, run: Run, decision: DecisionKind) -> None: ...


@dataclass(slots=True)
class _Move:
    """One migration under way."""

    run: Run
    container_id: str
    task: asyncio.Task[None] | None = None
    stop: AgentError | None = None
    """Why it was cancelled, where it was."""


class Sources:
    """Every migration that this host is the source of."""

    def __init__(self, host: Host, peers: Peers, watching: Watching) -> None:
        self._host = host
        self._peers = peers
        self._watching = watching
        self._moves: dict[str, _Move] = {}

    def find(self, migration: str) -> Run | None:
        move = self._moves.get(migration)
        return move.run if move else None

    def open(self) -> list[Run]:
        return [move.run for move in self._moves.values()]

    def of_container(self, container_id: str) -> Run | None:
        return next((move.run for move in self._moves.values() if move.container_id == container_id), None)

    async def start(self, request: Migrate, container: Container, begun: Begun, ended: Ended) -> Run:
        """Begin to move a container; `begun` is called before anything is done, `ended` with how it came out.

        Raises:
            Refused: it is being moved already, or too many are under way.

        """
        if (other := self.of_container(container.id)) is not None:
            raise Refused(ErrorCode.BUSY, f"{container.name} is being moved already, by {other.id}")
        if len(self._moves) >= self._host.settings.limits.migrations:
            raise Refused(
                ErrorCode.BUSY,
                f"{len(self._moves)} migrations are under way, the limit of {self._host.name}",
                hint="try again later, or raise limits.migrations",
            )
        migration = new_migration_id()
        record = {"container_id": container.id, "request": request.model_dump(mode="json")}
        move = _Move(
            Run(
                self._host.journal,
                Run.entry(migration, Role.SOURCE, container.name, request.to, record),
                changed=self._changed,
            ),
            container.id,
        )
        self._moves[migration] = move
        try:
            await move.run.record_beginning()
            await begun(move.run)
        except BaseException:
            self._moves.pop(migration, None)
            raise
        move.task = asyncio.create_task(self._work(move, request, ended), name=f"move {container.name}")
        return move.run

    async def _changed(self, run: Run) -> None:
        await self._watching.changed(run, run.doubt)
        if run.phase in (Phase.COMMITTED, Phase.ROLLED_BACK):
            await self._watching.decided(run, machine.decision(run.phase))

    async def _work(self, move: _Move, request: Migrate, ended: Ended) -> None:
        run = move.run
        progress = asyncio.create_task(self._progress(run), name=f"progress {run.id}")
        error: AgentError | None = None
        try:
            await self._story(run, request)
        except asyncio.CancelledError:
            if move.stop is None:  # the agent is being stopped; the journal knows where to go on
                error = Cancelled("the agent was stopped in the middle of the move")
                await self._took_back(run, error)
                raise
            error = move.stop
        except AgentError as failure:
            error = failure
        except Exception as failure:
            log.exception("%s failed in a way that was not foreseen", run.id)
            error = StepFailed(f"{type(failure).__name__}: {failure}", hint="a bug: the agent's log has the traceback")
        finally:
            progress.cancel()
            self._moves.pop(run.id, None)
        if error is not None:
            error = await self._took_back(run, error)
        await ended(run, error)

    async def _story(self, run: Run, request: Migrate) -> None:
        subject = await preflight.examine(self._host, request, run.id)
        await run.note_down(**subject.to_record())
        run.notes += subject.notes
        run.strategy = strategy_for(request)
        async with self._peers(request.to) as peer:
            await run.note_down(peer_url=peer.url())
            await source.migrate(run, subject, self._host, peer, strategies[run.strategy]())

    async def _took_back(self, run: Run, error: AgentError) -> AgentError:
        """The end phase of a story that failed, by what it means for the container."""
        if not machine.may_cancel(run.phase):
            return error  # decided: recovery goes on
        if run.undo_failed:
            stranded = Stranded(
                f"{error.message}; and not all could be taken back: {'; '.join(run.undo_failed)}",
                hint="it is tried again when the agent starts; the container may be frozen or without its network",
                detail=error.detail,
            )
            await run.enter(Phase.STRANDED)
            error = stranded
        elif run.phase is Phase.PLANNED:
            await run.enter(Phase.REFUSED)
            error = untouched(error)
        else:
            await run.enter(Phase.ROLLED_BACK)
        await self._watching.changed(run, error.info())
        return error

    async def _progress(self, run: Run) -> None:
        sent = 0
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if run.bytes_sent != sent:
                sent = run.bytes_sent
                await run.publish()

    # --- stopping ---

    def cancel(self, migration: str, why: AgentError | None = None) -> None:
        """Take a migration back.

        Raises:
            Refused: there is none such, or it is decided.

        """
        move = self._moves.get(migration)
        if move is None or move.task is None:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, f"{migration} is not under way on {self._host.name}")
        if move.run.deciding or not machine.may_cancel(move.run.phase):
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is decided: the container runs on {move.run.peer}")
        move.stop = move.stop or why or Cancelled("cancelled on request")
        move.task.cancel()

    def container_died(self, container_id: str) -> None:
        """A `die` before the decision ends the move; after it, it is our own doing."""
        run = self.of_container(container_id)
        if run is not None and not run.deciding and machine.may_cancel(run.phase):
            self.cancel(run.id, ContainerGone(f"{run.container} ended while it was being moved"))

    async def knows(self, migration: str) -> bool:
        return migration in self._moves or await self._host.journal.get(migration, Role.SOURCE) is not None

    async def resolve(self, migration: str, decision: DecisionKind) -> None:
        """A person's word on a migration that is decided, and whose target never answers (rule 8).

        Raises:
            Refused: it is not in doubt.

        """
        move = self._moves.get(migration)
        if move is None or move.run.phase is not Phase.COMMITTED:
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is not in doubt: there is nothing to resolve")
        if move.task is not None:
            move.stop = Stranded(f"{migration} was resolved by a person: {decision}")
            move.task.cancel()
            await asyncio.wait({move.task})
        run = move.run
        subject = await self._subject_now(run)
        async with self._peers(run.peer, run.record.get("peer_url", "")) as peer:
            if decision is DecisionKind.ABORT:
                await self.take_back(run, subject, peer, resolved=True)
            else:
                await run.enter(Phase.RUNNING, resolved=True)
                await source.finish(run, subject, self._host, peer, Cold())

    async def close(self) -> None:
        for move in list(self._moves.values()):
            if move.task is not None:
                move.task.cancel()
        await asyncio.gather(*(move.task for move in self._moves.values() if move.task), return_exceptions=True)

    # --- the journal ---

    async def decision(self, peer: str, migration: str) -> DecisionKind:
        """The answer to a target that asks. A run under way knows best; else the journal; unknown is an abort."""
        if (run := self.find(migration)) is not None:
            return machine.decision(run.phase) if run.peer == peer else DecisionKind.PENDING
        entry = await self._host.journal.get(migration, Role.SOURCE)
        if entry is not None and entry.peer != peer:
            return DecisionKind.PENDING
        return machine.decision(entry.phase if entry else None)

    async def recover(self, entry: Entry) -> None:
        """Take up a migration found in the journal after a restart (rule 6)."""
        move = _Move(Run(self._host.journal, entry, changed=self._changed), entry.record.get("container_id", ""))
        self._moves[entry.id] = move
        move.task = asyncio.create_task(self._recover(move), name=f"recover {entry.id}")

    async def _recover(self, move: _Move) -> None:
        run = move.run
        try:
            if "offer" not in run.record:
                await run.enter(Phase.REFUSED if run.phase is Phase.PLANNED else Phase.ROLLED_BACK)
                return
            subject = await self._subject_now(run)
            async with self._peers(run.peer, run.record.get("peer_url", "")) as peer:
                if machine.on_restart(Role.SOURCE, run.phase) is OnRestart.GO_ON:
                    await self._changed(run)  # the retained decision may not have been sent before the crash
                    await source.finish(run, subject, self._host, peer, Cold())
                else:
                    await self.take_back(run, subject, peer)
        except Exception:
            log.exception("%s could not be taken up again; it is tried at the next start", run.id)
        finally:
            self._moves.pop(run.id, None)

    async def _subject_now(self, run: Run) -> Subject:
        """The subject of the journal, with the process that the container has now: there may have been a reboot."""
        subject = from_record(run.record)
        found = await self._host.docker.find(subject.id)
        return replace(subject, pid=found.pid) if found is not None and found.running else subject

    async def take_back(self, run: Run, subject: Subject, peer: PeerClient, *, resolved: bool = False) -> None:
        """The undo of a whole story, by the same functions, where its stack was lost in a crash."""
        await leaving.wait_for_left_behind_dump(run)
        await source.release(self._host, subject)
        await leaving.put_policy_back(self._host, subject.id, subject.restart_policy)
        await leaving.start_as_docker_would(self._host, subject.id, subject.restart_policy)
        await Cold().release(run, self._host)
        await run.enter(Phase.ROLLED_BACK, resolved=resolved)
        await leaving.tell_discard(peer, run)


def untouched(error: AgentError) -> AgentError:
    """An error that came before anything was done, as the refusal that it amounts to."""
    if error.consequence is Consequence.UNTOUCHED:
        return error
    return unavailable(error) or Refused(error.code, error.message, hint=error.hint, detail=error.detail)


strategies: dict[str, Callable[[], Strategy]] = {"cold": Cold}


def strategy_for(request: Migrate) -> str:
    """Which strategy a request gets; `auto` is the one that there is."""
    return request.strategy if request.strategy in strategies else "cold"
