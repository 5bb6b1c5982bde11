"""The evacuation of this host, one at a time; its file, by which a restarted agent goes on with it; and the cordon.

The file says what was asked for and what became of each container, and is written before a move is begun. After a
restart of the agent in the same boot of the host the evacuation goes on: its moves were taken up by the journal, what
was taken back is tried again. After a reboot it does not: nobody knows why the host was rebooted, and whether its
containers are still to leave. It ends as `interrupted`, says so, and the host stays cordoned.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Protocol

from agent.base import durable
from agent.base.errors import AgentError, Refused
from agent.doors.docker import unavailable
from agent.migration import cordon, homes
from agent.migration.cordon import Cordon
from agent.migration.machine import ENDS, Role
from agent.migration.run import Run
from agent.shutdown import labels, survey
from agent.shutdown.evacuation import Around, Evacuation, Order
from agent.shutdown.places import Leaving
from agent.shutdown.row import Row
from protocol.base import utc_now
from protocol.commands import Evacuate, Return
from protocol.errors import ErrorCode, ErrorInfo
from protocol.evacuation import EvacuationKind, EvacuationState, EvacuationStatus, EvacueeState
from protocol.status import Phase

log = logging.getLogger("agent.shutdown")

FILE: Final = "evacuation.json"
SETTLE_SECONDS: Final = 15.0
"""After a start of the agent: till then it may not have heard of all hosts, and that there is none means nothing.
"""

Ended = Callable[[str, EvacuationStatus], Awaitable[None]]
"""The command that had asked for it, and what came of it."""


class Telling(Protocol):
    """Who is told."""

    async def evacuation(self, status: EvacuationStatus) -> None: ...
    def cordoned(self) -> None:
        """The cordon was put or lifted."""


class Evacuations:
    """Knows the one that goes on, and remembers the last."""

    def __init__(self, around: Around, telling: Telling) -> None:
        self._around = around
        self._telling = telling
        self._now: Evacuation | None = None
        self._task: asyncio.Task[EvacuationStatus] | None = None
        self._command = ""
        self._closing = False
        self._said: object = None
        """What was written down and told last."""
        self._state = around.host.settings.state_dir

    # --- what may be asked

    async def order(self, command: Evacuate | Return) -> Order:
        """What a command asks for."""
        limit = self._around.host.settings.limits.migrations
        order = Order(
            id=evacuation_id(command.id),
            parallel=min(command.parallel or limit, limit),
            deadline=utc_now() + timedelta(seconds=command.deadline_s) if command.deadline_s else None,
        )
        if isinstance(command, Evacuate):
            return replace(order, only=command.to)
        if command.to == self._around.host.name:
            raise Refused(ErrorCode.SAME_HOST, f"this is {command.to}: ask the hosts that have its containers")
        theirs = frozenset(await self.at_home_in(command.to))
        return replace(order, kind=EvacuationKind.RETURN, only=(command.to,), containers=theirs)

    async def plan(self, order: Order) -> EvacuationStatus:
        """What would be done."""
        return await Evacuation(order, self._around, _not_told).plan()

    async def begin(self, order: Order, command: str = "", ended: Ended | None = None) -> EvacuationStatus:
        """Begin it; an evacuation of everything cordons the host first.

        Raises:
            Refused: another one goes on.
            AgentError: dockerd does not answer; nothing was begun.

        """
        await self._around.host.docker.list()
        self._check_idle()
        if order.kind is EvacuationKind.EVACUATE and order.containers is None:
            self.put_cordon(f"it is being evacuated ({order.id})")
        evacuation = Evacuation(order, self._around, self._changed)
        await self._start(evacuation, command, ended)
        return evacuation.status()

    async def evacuate(self, order: Order, patience: float | None = None) -> EvacuationStatus:
        """Begin it, and wait for its end, or only for so long: how it stands then."""
        await self.begin(order)
        evacuation, task = self._now, self._task
        assert task is not None
        await asyncio.wait({task}, timeout=patience)
        return task.result() if task.done() or evacuation is None else evacuation.status()

    async def until_idle(self, seconds: float) -> None:
        """Wait for the end of what goes on; what takes longer begins nothing more, and is waited for as long again."""
        for _ in range(2):
            if self._now is None or self._task is None:
                return
            await asyncio.wait({self._task}, timeout=seconds / 2)
            if self._now is not None:
                self._now.cancel()

    async def until_ended(self) -> None:
        """Wait for the end of what goes on, however long that takes."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def cancel(self, evacuation: str) -> None:
        """Begin nothing more of it.

        Raises:
            Refused: there is none such.

        """
        if self._now is None or self._now.order.id != evacuation:
            raise Refused(
                ErrorCode.NO_SUCH_EVACUATION,
                f"{evacuation} is not under way on {self._around.host.name}",
                hint="the retained status of the host's evacuation says what has become of it",
            )
        self._now.cancel()

    def cordon(self) -> Cordon | None:
        """The one that holds now."""
        return cordon.find(self._state)

    def put_cordon(self, why: str, *, this_boot: bool = False) -> None:
        """Take no containers any more; with `this_boot` until the host has been rebooted."""
        cordon.put(self._state, Cordon(why, utc_now().isoformat(), cordon.boot() if this_boot else ""))
        self._telling.cordoned()

    def lift_cordon(self) -> None:
        """Take containers again.

        Raises:
            Refused: the host is just being evacuated.

        """
        if self._now is not None and self._now.order.kind is EvacuationKind.EVACUATE:
            raise Refused(
                ErrorCode.BUSY,
                f"{self._around.host.name} is being evacuated, {self._now.order.id}",
                hint=f"`transship cancel {self._now.order.id}` ends that",
            )
        cordon.lift(self._state)
        self._telling.cordoned()

    # --- what is heard

    def heard(self) -> None:
        """A host has said something of itself."""
        if self._now is not None:
            self._now.heard()

    async def ended(self, run: Run) -> None:
        """A migration has ended."""
        if self._now is not None and not self._closing and run.role is Role.SOURCE:
            await self._now.ended(run)

    # --- its life

    async def recover(self, ended: Ended) -> str:
        """Take up what an agent before this one was doing; the id of the evacuation that goes on, if there is one."""
        found = self._read()
        if found is None:
            return ""
        order, status, command = found.order, found.status, found.command
        if status.state is not EvacuationState.RUNNING:
            await self._telling.evacuation(status)
            return ""
        evacuation = Evacuation(order, self._around, self._changed)
        evacuation.started = status.started_at
        self._command = command
        for shown in status.containers:
            leaving = Leaving(shown.container_id, shown.container, shown.memory_bytes, priority=shown.priority)
            evacuation.rows[shown.container_id] = Row(leaving, shown, found.attempts.get(shown.container_id, 0))
        goes_on = found.boot == cordon.boot()
        if goes_on:
            self._now = evacuation  # from here on it hears of ends; those before are in the journal
        for row in evacuation.rows.values():
            await self._catch_up(row)
        if not goes_on:
            await self._interrupted(evacuation, command, ended)
            return ""
        log.warning("%s goes on after the restart of the agent", order.id)
        await self._start(evacuation, command, ended, settle_seconds=SETTLE_SECONDS)
        return order.id

    async def _interrupted(self, evacuation: Evacuation, command: str, ended: Ended) -> None:
        why = ErrorInfo(code=ErrorCode.CANCELLED, message="the host was rebooted in the middle of its evacuation")
        evacuation.error = why
        for row in evacuation.rows.values():
            if row.state in (EvacueeState.WAITING, EvacueeState.MOVING):
                row.leave(why)
        evacuation.state = EvacuationState.INTERRUPTED
        await self._changed(evacuation)
        await ended(command, evacuation.status())

    async def _catch_up(self, row: Row) -> None:
        """What the journal says of the move that was under way; it is heard of when it ends, if it has not."""
        if row.state is not EvacueeState.MOVING:
            return
        entry = await self._around.host.journal.get(row.shown.migration or "", Role.SOURCE)
        if entry is not None and entry.phase is Phase.DONE:
            row.say(state=EvacueeState.MOVED)
        elif entry is None or entry.phase in ENDS[Role.SOURCE]:
            row.say(state=EvacueeState.WAITING)

    async def close(self) -> None:
        """The agent ends: leave it as it is in the file, before its moves are taken back."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def gone(self, container_id: str) -> None:
        """A container was removed."""
        homes.forget(self._state, container_id)

    def _check_idle(self) -> None:
        if self._now is not None:
            kind = "being evacuated" if self._now.order.kind is EvacuationKind.EVACUATE else "giving containers back"
            raise Refused(
                ErrorCode.BUSY,
                f"{self._around.host.name} is {kind} already, {self._now.order.id}",
                hint=f"wait for its end, or `transship cancel {self._now.order.id}`",
            )

    async def _start(
        self, evacuation: Evacuation, command: str, ended: Ended | None, *, settle_seconds: float = 0
    ) -> None:
        self._now, self._command = evacuation, command
        try:
            await self._changed(evacuation)
        except BaseException:  # a disk that is full, for one
            self._now = None
            raise
        work = self._work(evacuation, command, ended, settle_seconds)
        self._task = asyncio.create_task(work, name=f"evacuation {command}")

    async def _work(
        self, evacuation: Evacuation, command: str, ended: Ended | None, settle_seconds: float
    ) -> EvacuationStatus:
        try:
            status = await evacuation.run(settle_seconds=settle_seconds)
        except Exception as error:
            log.exception("%s has failed", evacuation.order.id)
            status = await self._failed(evacuation, error)
        finally:
            self._now = None
        left = [one.container for one in status.containers if one.state is EvacueeState.LEFT]
        log.info("%s is %s: %d left behind%s", status.id, status.state, len(left), f" ({', '.join(left)})" * bool(left))
        if ended is not None:
            await ended(command, status)
        return status

    async def _failed(self, evacuation: Evacuation, error: Exception) -> EvacuationStatus:
        """Dockerd was away, the disk is full, or a bug: what was not moved stays, and is said."""
        foreseen = (unavailable(error) or error) if isinstance(error, AgentError) else None
        unforeseen = ErrorInfo(code=ErrorCode.INTERNAL, message=f"{type(error).__name__}: {error}")
        evacuation.error = foreseen.info() if foreseen is not None else unforeseen
        for row in evacuation.rows.values():
            with contextlib.suppress(AgentError, OSError):  # the journal's disk, too; what is decided goes on by itself
                await self._catch_up(row)
            if row.state is EvacueeState.WAITING:
                row.leave(evacuation.error)
        evacuation.state = EvacuationState.CANCELLED
        try:
            await self._changed(evacuation)
        except OSError:
            log.exception("the end of %s can't be written down", evacuation.order.id)
            await self._telling.evacuation(evacuation.status())
        return evacuation.status()

    async def _changed(self, evacuation: Evacuation) -> None:
        now = evacuation.state, tuple(row.shown for row in evacuation.rows.values())
        if not self._closing and now != self._said:
            status = evacuation.status()
            self._write(evacuation, status)
            self._said = now
            await self._telling.evacuation(status)

    async def at_home_in(self, host: str, *, by_itself: bool = False) -> list[str]:
        """The containers here that return there, and may; or those that do so without being asked."""
        found = []
        for one in await self._around.host.docker.list():
            if one.state in survey.ALIVE and homes.of(self._state, one.id) == host:
                wishes = labels.read(one.labels)
                found += [one.id] if wishes.returns_by_itself or (wishes.returns and not by_itself) else []
        return found

    # --- its file

    def _write(self, evacuation: Evacuation, status: EvacuationStatus) -> None:
        order = evacuation.order
        content = {
            "command": self._command,
            "boot": cordon.boot(),
            "only": order.only,
            "containers": sorted(order.containers) if order.containers is not None else None,
            "attempts": {each: row.attempts for each, row in evacuation.rows.items()},
            "status": status.model_dump(mode="json"),
        }
        durable.write(self._state / FILE, json.dumps(content))

    def _read(self) -> "_Found | None":
        try:
            return _Found(json.loads((self._state / FILE).read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError):
            log.exception("what was being evacuated can't be read; nothing goes on")
            return None


class _Found:
    """The file, as it was read."""

    def __init__(self, content: Any) -> None:
        self.status = EvacuationStatus.model_validate(content["status"])
        self.command: str = content["command"]
        self.boot: str = content["boot"]
        self.attempts: dict[str, int] = content["attempts"]
        containers = content["containers"]
        self.order = Order(
            id=self.status.id,
            kind=self.status.kind,
            only=tuple(content["only"]),
            parallel=self.status.parallel,
            deadline=self.status.deadline,
            containers=frozenset(containers) if containers is not None else None,
        )


def evacuation_id(command: str) -> str:
    """The same for the same command."""
    return "e-" + hashlib.sha256(command.encode()).hexdigest()[:16]


async def _not_told(evacuation: Evacuation) -> None:
    """Nobody is told of what is only planned."""
