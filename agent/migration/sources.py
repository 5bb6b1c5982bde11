"""The migrations that leave this host: one task each, reported, cancelled, and taken up again after a crash.

A migration is here until its journal says that it has ended: what is decided goes on, and what is not is taken back,
however often that fails on the way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from agent.base import tracing
from agent.base.errors import AgentError, Cancelled, ContainerGone, Refused, Stranded, from_wire
from agent.base.tasks import beside, until_it_works
from agent.doors.docker_model import Container
from agent.doors.peer_client import PeerClient
from agent.migration import choosing, leaving, machine, preflight, rehearsal, restarting, source
from agent.migration.host import Host
from agent.migration.journal import Entry
from agent.migration.machine import ENDS, RESOLUTIONS, OnRestart, Role
from agent.migration.moving import Move, Moves, foreseen, took_back, waits
from agent.migration.run import Run
from agent.migration.subject import Subject, from_record
from agent.strategy import dead
from agent.strategy.dump import DUMPS
from protocol.base import new_migration_id
from protocol.commands import Migrate
from protocol.errors import ErrorCode, ErrorInfo
from protocol.peer import DecisionKind
from protocol.status import ENDED, Phase

log = logging.getLogger("agent.source")

T = TypeVar("T")

PROGRESS_SECONDS = 0.2
TELLS = (Phase.COMMITTED, Phase.RUNNING, Phase.STRANDED, Phase.ROLLED_BACK)
"""Phases of which the retained decision is said: a target that asks is waiting for it."""

Begun = Callable[[Run], Awaitable[None]]
Ended = Callable[[Run, AgentError | None], Awaitable[None]]


class Peers(Protocol):
    """Clients for peers."""

    def __call__(self, name: str, last_url: str = "") -> PeerClient: ...


class Watching(Protocol):
    """Who is told of a migration's way."""

    async def changed(self, run: Run, error: ErrorInfo | None) -> None: ...
    async def decided(self, run: Run, decision: DecisionKind) -> None: ...


class Sources:
    """Every migration that this host is the source of."""

    def __init__(self, host: Host, peers: Peers, watching: Watching) -> None:
        self._host = host
        self._peers = peers
        self._watching = watching
        self.moves = Moves()

    async def claim(self, container: Container, run: Run) -> None:
        """Keep a container from being moved.

        Raises:
            Refused: it is part of something already.

        """
        await self._check_free(container)
        self.moves.claimed[container.id] = run

    def unclaim(self, container_id: str) -> None:
        self.moves.unclaim(container_id)

    async def _check_free(self, container: Container) -> None:
        unfinished = await self._host.journal.unfinished()  # as source or target, also one not taken up again yet
        # whoever asks does not wait any more until it is in `_moves` or claimed: two commands may come at once
        others = [entry.id for entry in unfinished if entry.record.get("container_id") == container.id]
        others += [run.id for run in self.moves.runs_of(container.id)]
        if others:
            raise Refused(
                ErrorCode.BUSY,
                f"{container.name} is part of a move or checkpoint already, {others[0]}",
                hint="try again when that has ended; `transship migrations` shows what it waits for",
            )

    def take_over(self, run: Run) -> None:
        """Take back what a checkpoint could not take back itself, or has not seen through, until it works."""
        move = Move(run, run.record.get("container_id", ""))
        self.moves[run.id] = move
        self._end(move)

    def find(self, migration: str) -> Run | None:
        move = self.moves.get(migration)
        return move.run if move else None

    def open(self) -> list[Run]:
        return [move.run for move in self.moves.values()]

    def of_container(self, container_id: str) -> Run | None:
        """By which it is leaving just now."""
        return next((move.run for move in self.moves.of_container(container_id) if move.run.phase not in ENDED), None)

    async def start(
        self, request: Migrate, container: Container, begun: Begun, ended: Ended, *, migration: str = "", home: str = ""
    ) -> Run:
        """Begin to move a container; `begun` is called before anything is done, `ended` with how it came out.

        A `migration` that was begun before is not begun again; at `home` is it, if it is to return one day.

        Raises:
            Refused: it is part of a move already, or too many are under way.

        """
        if migration and await self.knows(migration):
            raise Refused(ErrorCode.TOO_LATE, f"{migration} was begun before")
        await self._check_free(container)
        if len(self.moves) >= self._host.settings.limits.migrations:
            raise Refused(
                ErrorCode.BUSY,
                f"{len(self.moves)} migrations are under way, the limit of {self._host.name}",
                hint="try again later, or raise limits.migrations",
            )
        migration = migration or new_migration_id()
        record = {
            "container_id": container.id,
            "request": request.model_dump(mode="json"),
            "bandwidth": request.bandwidth,
            "home": home,
        }
        move = Move(
            Run(
                self._host.journal,
                Run.entry(migration, Role.SOURCE, container.name, request.to, record),
                changed=self._changed,
                together=self._host.pace,
            ),
            container.id,
        )
        self.moves[migration] = move
        try:
            with tracing.working_for(migration):  # whoever begins it may do other things afterwards
                await move.run.record_beginning()
                await begun(move.run)
        except BaseException:
            self._end(move)  # nothing was touched; the journal has to say so
            raise
        move.task = asyncio.create_task(self._work(move, request, ended), name=f"move {container.name}")
        return move.run

    async def _changed(self, run: Run) -> None:
        await self._watching.changed(run, run.failure or run.doubt)
        if run.phase in TELLS:
            await self._watching.decided(run, machine.decision(run.phase))

    async def _work(self, move: Move, request: Migrate, ended: Ended) -> None:
        run = move.run
        tracing.works_for(run.id)
        error: AgentError | None = None
        try:
            await self._story_to_its_end(move, request)
            error = from_wire(run.failure) if run.failure is not None else None  # decided, and lost all the same
        except asyncio.CancelledError:
            if move.stop is None:  # the agent is being stopped; the journal knows where to go on
                await took_back(move, Cancelled("the agent was stopped in the middle of the move"))
                raise
            error = move.stop
        except Exception as failure:
            error = foreseen(failure)
        if error is not None:
            error = await self._again(run, partial(took_back, move, error))
        if run.phase in ENDS[Role.SOURCE]:
            self.moves.forget(run.id)
        try:
            await ended(run, error)
        except Exception:
            log.exception("%s: how it has ended could not be told", run.id)
        if move.task is asyncio.current_task():  # else a person's word has taken over
            await self._until_ended(move)

    async def _story_to_its_end(self, move: Move, request: Migrate) -> None:
        """The story; what fails in it after the decision is done again until it has ended."""
        try:
            await self._story(move.run, request)
        except Exception as failure:
            if machine.may_cancel(move.run.phase):
                raise
            log.error("%s is decided and goes on: %s", move.run.id, foreseen(failure))
            await self._until_ended(move)

    async def _story(self, run: Run, request: Migrate) -> None:
        subject = await preflight.examine(self._host, request, run.id)
        async with self._peers(request.to) as peer:
            await choosing.find_way(run, self._host, request, subject, peer)
            subject = subject.going_by(run.strategy, run.record.get("home") or None)
            await run.note_down(**subject.to_record(), strategy=run.strategy)
            run.notes += subject.notes
            await run.note_down(peer_url=peer.url())
            strategy = choosing.strategies[run.strategy]()
            following = strategy.carry(subject.memory(run, self._host, peer))
            keep_up = self._progress(run), leaving.tell_alive(peer, run), dead.see_to(DUMPS / run.id)
            async with beside(*keep_up, following):
                story = rehearsal.rehearse if request.rehearse else source.migrate
                await story(run, subject, self._host, peer, strategy)

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
        move = self.moves.get(migration)
        if move is None or move.task is None:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, f"{migration} is not under way on {self._host.name}")
        if not move.may_cancel:
            decided = move.run.deciding or machine.decision(move.run.phase) is DecisionKind.COMMIT
            what = f"decided: the container runs on {move.run.peer}" if decided else "being taken back already"
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is {what}")
        move.stop = move.stop or why or Cancelled("cancelled on request")
        move.task.cancel()

    async def limit(self, migration: str | None, bandwidth: int | None) -> None:
        """Change a migration's bandwidth, or that of all of them together.

        Raises:
            Refused: there is none such.

        """
        if migration is None:
            self._host.pace.change(bandwidth)
            return
        if (run := self.find(migration)) is None:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, f"{migration} is not under way on {self._host.name}")
        run.bandwidth.change(bandwidth)
        await run.note_down(bandwidth=bandwidth)
        await run.publish()

    def container_died(self, container_id: str) -> None:
        """A `die` before the decision ends the move; after it, it is our own doing."""
        self.call_back(container_id, lambda name: ContainerGone(f"{name} ended while it was being moved"))

    def call_back(self, container_id: str, why: Callable[[str], AgentError]) -> None:
        """Begin to take back what moves it, unless that is decided, or being taken back already."""
        for move in self.moves.of_container(container_id):
            if move.task is not None and move.may_cancel:
                self.cancel(move.run.id, why(move.run.container))

    def container_signalled(self, container_id: str, sent: str) -> None:
        """Somebody has sent it a signal: if that was to end it, a move that is taken back must not start it again."""
        for run in self.moves.runs_of(container_id):
            create = run.record.get("offer", {}).get("create", {})
            if not run.unheard and restarting.is_meant_to_end(sent, create.get("StopSignal", "")):
                run.stopped = True

    async def knows(self, migration: str) -> bool:
        return migration in self.moves or await self._host.journal.get(migration, Role.SOURCE) is not None

    async def resolve(self, migration: str, decision: DecisionKind) -> None:
        """A person's word on a migration that is decided, and whose target never answers, or can't have all (rule 8).

        Raises:
            Refused: it is not in doubt.

        """
        move = self.moves.get(migration)
        if move is not None and move.task is not None and waits(move.run) and decision is DecisionKind.COMMIT:
            await move.run.note_down(given_up=True)
            await asyncio.wait({move.task})
            return
        if move is None or move.task is None or move.run.phase is not Phase.COMMITTED:
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is not in doubt: there is nothing to resolve")
        asking, move.stop = move.task, Stranded(f"{migration} was resolved by a person: {decision}")
        asking.cancel()
        move.task = asyncio.create_task(self._resolved(move, asking, decision), name=f"resolve {migration}")
        await asyncio.shield(move.task)

    async def _resolved(self, move: Move, asking: asyncio.Task[None], decision: DecisionKind) -> None:
        """First the word, durably; then what it means, as after any restart."""
        run = move.run
        tracing.works_for(run.id)
        await asyncio.wait({asking})
        in_doubt = run.phase is Phase.COMMITTED
        if in_doubt:
            run.doubt = None
            there = RESOLUTIONS[Role.SOURCE, Phase.COMMITTED][decision]
            await self._again(run, partial(run.enter, there, resolved=True))
        await self._until_ended(move)
        if not in_doubt:
            raise Refused(ErrorCode.TOO_LATE, f"{run.id} was not in doubt any more: {run.peer} has just confirmed")

    async def close(self) -> None:
        for move in list(self.moves.values()):
            if move.task is not None:
                move.task.cancel()
        await asyncio.gather(*(move.task for move in self.moves.values() if move.task), return_exceptions=True)

    # --- the journal ---

    async def decision(self, peer: str, migration: str) -> DecisionKind:
        """The answer to a target that asks. A run under way knows best; else the journal; unknown is an abort."""
        if (run := self.find(migration)) is not None:
            return machine.decision(run.phase) if run.peer == peer else DecisionKind.PENDING
        entry = await self._host.journal.get(migration, Role.SOURCE)
        if entry is not None and entry.peer != peer:
            return DecisionKind.PENDING
        return machine.decision(entry.phase if entry else None)

    def recover(self, entry: Entry) -> None:
        """Take up a migration found in the journal after a restart (rule 6)."""
        run = Run(self._host.journal, entry, changed=self._changed, together=self._host.pace)
        move = Move(run, entry.record.get("container_id", ""))
        self.moves[entry.id] = move
        self._end(move)

    def _end(self, move: Move) -> None:
        move.ending = True
        move.task = asyncio.create_task(self._until_ended(move), name=f"end {move.run.id}")

    async def _until_ended(self, move: Move) -> None:
        """Go on with what is decided, take back what is not, until the journal says that it has ended."""
        tracing.works_for(move.run.id)
        await self._again(move.run, partial(self._take_up, move.run))
        self.moves.forget(move.run.id)

    async def _again(self, run: Run, work: Callable[[], Awaitable[T]]) -> T:
        return await until_it_works(f"{run.id} ({run.phase})", work, self._host.settings.deadlines.ask_again)

    async def _take_up(self, run: Run) -> None:
        what = machine.on_restart(Role.SOURCE, run.phase)
        if what is OnRestart.NOTHING:
            return
        if "offer" not in run.record:  # nothing was touched before that was noted
            await run.enter(Phase.REFUSED if run.phase is Phase.PLANNED else Phase.ROLLED_BACK)
            return
        subject = await self._subject_now(run)
        async with self._peers(run.peer, run.record.get("peer_url", "")) as peer:
            if what is OnRestart.GO_ON:
                await run.publish()  # the retained decision may not have been sent before a crash
                strategy = choosing.strategy_of(run)
                async with beside(strategy.carry(subject.memory(run, self._host, peer))):
                    await source.finish(run, subject, self._host, peer, strategy)
            else:
                await self.take_back(run, subject, peer)

    async def _subject_now(self, run: Run) -> Subject:
        """The subject of the journal, with the process that the container has now: there may have been a reboot."""
        subject = from_record(run.record)
        found = await self._host.docker.find(subject.id)
        return replace(subject, pid=found.pid) if found is not None and found.running else subject

    async def take_back(self, run: Run, subject: Subject, peer: PeerClient) -> None:
        """The undo of a whole story, by the same functions, where its stack was lost in a crash or was not enough."""
        strategy = choosing.strategy_of(run)
        await strategy.stop_serving(self._host.shell, run.id)
        await leaving.wait_for_left_behind_dump(run)
        if not run.record.get("let_go"):  # by a rehearsal, which has let it run; somebody may have paused it since
            await source.release(self._host, subject)
        await leaving.put_policy_back(self._host, run, subject)
        await strategy.release(self._host.shell, run.id)
        await run.enter(Phase.ROLLED_BACK)
        await leaving.tell_discard(peer, run)
