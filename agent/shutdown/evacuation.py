"""One host being emptied, from the first look to the last word: planned, moved, planned anew with what came of it.

The moves are ordinary ones, with ids made from that of the evacuation: none is begun twice. Whoever can't go stays as
it is, and it is said why. Nothing here waits for a clock but for the deadline, and for what was busy just now.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent.base.errors import AgentError, Cancelled, Refused
from agent.migration import homes
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.sources import Peers, Sources
from agent.shutdown import planner, survey
from agent.shutdown.places import Leaving, Origin
from agent.shutdown.planner import Placement, Plan, Wanted
from agent.shutdown.row import Row
from protocol.base import EvacuationId, new_command_id, utc_now
from protocol.commands import Migrate
from protocol.errors import ErrorCode, ErrorInfo
from protocol.evacuation import EvacuationKind, EvacuationState, EvacuationStatus, Evacuee, EvacueeState
from protocol.status import Engine

log = logging.getLogger("agent.shutdown")

PAUSE_SECONDS: Final = 1.0
"""Before what was busy is asked again, if no host says anything new."""
LAST_SECONDS: Final = 30.0
"""For moves that are taken back, or are decided, to end when nothing more is begun."""
ROUNDS: Final = 5
"""Of looking whether there are more: what was on its way here when it began is here by then."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done."""

    id: EvacuationId
    kind: EvacuationKind = EvacuationKind.EVACUATE
    only: tuple[str, ...] = ()
    """Hosts that may be used; none: any."""
    parallel: int = 4
    deadline: datetime | None = None
    containers: frozenset[str] | None = None
    """Ids; None: all that are alive."""

    def seconds_left(self) -> float | None:
        return (self.deadline - utc_now()).total_seconds() if self.deadline is not None else None


@dataclass(frozen=True, slots=True)
class Around:
    """The rooms and doors that it needs."""

    host: Host
    sources: Sources
    hosts: survey.Hosts
    peers: Peers


def migration_id(evacuation: str, container_id: str, attempt: int) -> str:
    """Always the same for the same attempt at the same container."""
    return "m-" + hashlib.sha256(f"{evacuation} {container_id} {attempt}".encode()).hexdigest()[:16]


def _not_moved(row: Row) -> bool:
    """By our own wish: it is to say why we wished so."""
    error = row.shown.error
    return row.state is EvacueeState.WAITING or (error is not None and error.code is ErrorCode.CANCELLED)


async def _nothing(*_: object) -> None:
    """How a move comes out is heard with all others."""


class Evacuation:
    """One order, carried out once; `changed` is told of each step before it is relied on."""

    def __init__(self, order: Order, around: Around, changed: Callable[["Evacuation"], Awaitable[None]]) -> None:
        self.order = order
        self.state = EvacuationState.RUNNING
        self.started = utc_now()
        self.error: ErrorInfo | None = None
        """Why it could not be carried out to its end."""
        self.rows: dict[str, Row] = {}
        self._around = around
        self._changed = changed
        self._engine = Engine(docker="")
        self._surroundings = survey.Surroundings(around.host, around.hosts, around.peers)
        self._settled = 0.0
        """When all hosts must have been heard of: an agent that was just started knows of none at first."""
        self._news = asyncio.Event()
        self._stop: ErrorInfo | None = None
        """Why nothing more is begun."""
        self._sequence = 0

    def status(self) -> EvacuationStatus:
        self._sequence = max(self._sequence + 1, int(utc_now().timestamp() * 1000))
        return EvacuationStatus(
            id=self.order.id,
            kind=self.order.kind,
            host=self._around.host.name,
            state=self.state,
            sequence=self._sequence,
            started_at=self.started,
            at=utc_now(),
            deadline=self.order.deadline,
            parallel=self.order.parallel,
            error=self.error,
            containers=tuple(row.shown for row in self.rows.values()),
        )

    async def plan(self) -> EvacuationStatus:
        """What would be done; nothing is."""
        await self._look()
        self._note(await self._planned(), final=True)
        self.state = EvacuationState.PLANNED
        return self.status()

    async def run(self, *, settle_seconds: float = 0) -> EvacuationStatus:
        """Carry it out, to its end. Cancelled itself, it leaves moves that are under way to the journal."""
        self._settled = self._now() + settle_seconds
        limit = asyncio.timeout(self.order.seconds_left())
        try:
            async with limit:
                await self._all()
        except TimeoutError:
            if not limit.expired():
                raise
            message = "the deadline of the evacuation has come"
            self._stop = self._stop or ErrorInfo(code=ErrorCode.TOO_LITTLE_TIME, message=message)
        if self._stop is not None:
            await self._wind_up(self._stop)
        cancelled = self._stop is not None and self._stop.code is ErrorCode.CANCELLED
        self.state = EvacuationState.CANCELLED if cancelled else EvacuationState.DONE
        await self._changed(self)
        return self.status()

    def cancel(self) -> None:
        """Begin nothing more, and take back what can be."""
        message = "the evacuation was cancelled"
        self._stop = self._stop or ErrorInfo(code=ErrorCode.CANCELLED, message=message)
        self._news.set()

    def heard(self) -> None:
        """A host has said something new of itself."""
        self._news.set()

    async def ended(self, run: Run) -> None:
        """A migration of this host has ended, whosever it was; may come twice."""
        for row in list(self.rows.values()):
            if row.shown.migration == run.id and row.state is EvacueeState.MOVING:
                row.ended(run, self._now())
                if self._stop is not None and _not_moved(row):
                    row.leave(self._stop)
                self._news.set()
                await self._changed(self)

    # --- the story

    async def _all(self) -> None:
        for _ in range(ROUNDS):
            if not await self._look_patiently():
                return
            await self._move_all()
            if self._stop is not None or self.order.kind is EvacuationKind.RETURN:
                return

    async def _look_patiently(self) -> bool:
        """An agent that was just started may have been so together with its dockerd."""
        while True:
            try:
                return await self._look()
            except AgentError as error:
                if self._now() >= self._settled:
                    raise
                log.warning("%s: %s", self.order.id, error.message)
            self._news.clear()
            await self._wait(PAUSE_SECONDS)

    async def _look(self) -> bool:
        """Whether there is anything to move that was not known, or not moved, before."""
        host = self._around.host
        there = await survey.alive(host, self.order.containers)
        known = [each for each, row in self.rows.items() if row.state is EvacueeState.WAITING]
        wanted = [*(each for each in known if each in there), *(each for each in there if each not in self.rows)]
        self._engine = await host.engine()
        for leaving in await survey.look(host, wanted, self._engine):
            # where it was made it may be, whatever its label says of other places
            self._add(replace(leaving, targets=()) if self.order.kind is EvacuationKind.RETURN else leaving)
        for each in known:
            if each not in there:
                self.rows[each].gone()
        return bool(self._of(EvacueeState.WAITING) or self._of(EvacueeState.MOVING))

    def _add(self, leaving: Leaving) -> None:
        if (row := self.rows.get(leaving.id)) is not None:  # an agent before this one has begun with it
            row.leaving = leaving
            return
        shown = Evacuee(
            container=leaving.name,
            container_id=leaving.id,
            state=EvacueeState.WAITING,
            priority=leaving.priority,
            memory_bytes=leaving.memory_bytes,
            notes=leaving.notes,
        )
        self.rows[leaving.id] = Row(leaving, shown)

    async def _move_all(self) -> None:
        """Until each has gone, or can't: what a move came to may change what is best for the others."""
        while self._stop is None and (self._of(EvacueeState.WAITING) or self._of(EvacueeState.MOVING)):
            self._news.clear()
            plan, moving = await self._planned(), len(self._of(EvacueeState.MOVING))
            stuck = not plan.going and not moving
            self._note(plan, final=stuck and self._now() >= self._settled)
            await self._changed(self)
            at_once = [each for each in plan.going if not each.begins_s and not self.rows[each.one.id].busy]
            for placement in at_once[: max(0, self.order.parallel - moving)]:
                await self._begin(placement)
            if self._of(EvacueeState.WAITING) or self._of(EvacueeState.MOVING):
                await self._wait(self._settled - self._now() if stuck else None)

    async def _planned(self) -> Plan:
        moving = self._of(EvacueeState.MOVING)
        promised: dict[str, tuple[int, int]] = {}
        for row in moving:
            size, count = promised.get(row.shown.to or "", (0, 0))
            promised[row.shown.to or ""] = size + row.leaving.memory_bytes + row.leaving.room_bytes, count + 1
        places = await self._surroundings.places(promised)
        origin = Origin(self._around.host.name, self._engine, os.uname().machine, tuple(places))
        wanted = Wanted(self.order.only, max(1, self.order.parallel - len(moving)), self.order.seconds_left())
        return planner.plan(origin, [row.leaving for row in self._of(EvacueeState.WAITING)], wanted)

    def _note(self, plan: Plan, *, final: bool) -> None:
        for each in plan.placements:
            self.rows[each.one.id].planned(each, final=final)
        later = [each.one.id for each in plan.placements]
        self.rows = {each: self.rows[each] for each in [*(one for one in self.rows if one not in later), *later]}

    async def _begin(self, placement: Placement) -> None:
        row, host = self.rows[placement.one.id], self._around.host
        assert placement.to is not None
        row.attempts += 1
        migration = migration_id(self.order.id, row.leaving.id, row.attempts)
        row.say(state=EvacueeState.MOVING, migration=migration)
        await self._changed(self)  # an agent after this one must know of it, before it is begun
        try:
            container = await host.docker.find(row.leaving.id)
            if container is None:
                row.gone()
                self._news.set()
                return
            home = homes.of(host.settings.state_dir, container.id)
            if self.order.kind is EvacuationKind.EVACUATE:
                home = home or host.name
            request = Migrate(id=new_command_id(), container=container.id, to=placement.to)
            await self._around.sources.start(
                request, container, _nothing, _nothing, migration=migration, home="" if home == placement.to else home
            )
        except AgentError as error:
            row.came_to_grief(error.info(), self._now())
            if not row.busy:
                self._news.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self, seconds: float | None) -> None:
        """For news; a little while only, where something was turned away."""
        busy = [row for row in self.rows.values() if row.busy]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_SECONDS if busy else seconds):
                await self._news.wait()
        for row in busy:
            row.busy = False

    async def _wind_up(self, why: ErrorInfo) -> None:
        """Begin nothing more; take back what is under way and not decided, and wait a while for that."""
        for row in self._of(EvacueeState.WAITING):
            row.leave(why)
        for row in self._of(EvacueeState.MOVING):
            try:
                self._around.sources.cancel(row.shown.migration or "", Cancelled(why.message))
            except Refused as refused:
                log.info("%s: %s", row.shown.container, refused.message)  # it is decided, and goes on
                if not await self._around.sources.knows(row.shown.migration or ""):
                    row.leave(why)  # its time was over before it was begun
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while self._of(EvacueeState.MOVING):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            log.warning("%s has ended before all of its moves have: those go on by themselves", self.order.id)

    def _of(self, state: EvacueeState) -> list[Row]:
        return [row for row in self.rows.values() if row.state is state]
