"""What runs on this host, told as it changes: Docker's events in, retained container status and events out.

Subscribe, list, reconcile; on a reconnect subscribe from the last event on and list again, since events get lost. List
again too when events were read late: dockerd drops them for a slow reader, and does not tell. An event only says where
to look: what is published is what Docker shows then, so a repeated or late one does no harm.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

from agent.base.errors import AgentError, DockerFailed, StepTimeout
from agent.doors.docker import Docker
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container, Summary
from protocol.base import utc_now
from protocol.check import Outlook
from protocol.status import ContainerStatus, Engine, Event

log = logging.getLogger("agent.inventory")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
LOOK_SECONDS = 1.0
"""A container that is just being started is not waited for before the next one is looked at."""
BACKLOG = 5000
"""Events waiting to be handled; with more than that the list is read anew instead."""
LATE_SECONDS = 2.0
"""An event that is older when it is read: we were not reading, and dockerd may have dropped others meanwhile, which it
does when a thousand of them wait and one could not be handed on for 0.1 s."""
# Nothing in a status changes by these.
_NO_NEWS = frozenset(
    {"top", "attach", "detach", "resize", "commit", "copy", "archive-path", "extract-to-dir", "export"}
)
# Each probe of a container's health is three of these; told to listeners, not to the broker.
_EXECS = frozenset({"exec_create", "exec_start", "exec_die", "exec_detach"})
# Beside these an event has every label of the container, which a status shows already.
_DETAILS = ("exitCode", "execDuration", "signal", "oldName", "execID", "image", "type", "driver", "destination")

_ALIVE = frozenset({"running", "paused", "restarting"})

_NANOSECONDS = re.compile(r"(?<=\.\d{6})\d+")

Callback = Callable[[DockerEvent], Awaitable[None]]


def _volumes(found: Container | Summary) -> tuple[str, ...]:
    names = (
        [each.name for each in found.mounts if each.name]
        if isinstance(found, Container)
        else [name for name, _ in found.volumes]
    )
    return tuple(sorted(names))


class Publisher(Protocol):
    """Where it is told."""

    async def engine_changed(self, engine: Engine | None) -> None:
        """None: dockerd does not answer."""

    async def publish_container(self, container: ContainerStatus) -> None: ...

    async def remove_container(self, container_id: str) -> None: ...

    async def publish_event(self, event: Event) -> None: ...

    async def listed(self) -> None:
        """Everything that is there has been published: what is retained beyond it is gone."""


class Inventory:
    """Follows one dockerd for as long as it runs, and waits for it when it does not."""

    def __init__(
        self,
        docker: Docker,
        host: str,
        publisher: Publisher,
        *,
        engine: Callable[[], Awaitable[Engine]] | None = None,
        migration_of: Callable[[str], str | None] = lambda container_id: None,
        home_of: Callable[[str], str] = lambda container_id: "",
        outlook_of: Callable[[str], Outlook | None] = lambda container_id: None,
        known: Iterable[str] = (),
    ) -> None:
        """Set up.

        `migration_of` tells which migration moves a container; `known` are ids whose retained status an agent before
        this one has left at the broker: those that are gone are removed.
        """
        self._docker = docker
        self._host = host
        self._publisher = publisher
        self._engine = engine or docker.engine
        self._migration_of = migration_of
        self._home_of = home_of
        self._outlook_of = outlook_of
        self._callbacks: list[Callback] = []
        self._list_callbacks: list[Callable[[], None]] = []
        self._published: dict[str, ContainerStatus | None] = dict.fromkeys(known)
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._pause = FIRST_PAUSE
        self._last_nano: int | None = None
        self._subscribed_nano = 0
        self._late = False
        self._catching_up: asyncio.Task[None] | None = None
        self._down: bool | None = None

    @property
    def connected(self) -> bool:
        """Whether dockerd answers, as far as is known."""
        return self._down is False

    def on_event(self, callback: Callback) -> None:
        """Have each event told, in order and before anything is published of it. It may come twice."""
        self._callbacks.append(callback)

    def on_list(self, callback: Callable[[], None]) -> None:
        """Have it told when all was looked at anew: events may have been missed before."""
        self._list_callbacks.append(callback)

    async def run(self) -> None:
        """Follow Docker until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except AgentError as error:
                    log.warning("Docker: %s; trying again in %.1f s", error.message, self._pause)
                await self._engine_is(None)
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            await self._stop_looking()

    def refresh(self, container_id: str) -> None:
        """Look at a container again: its migration began or ended."""
        if container_id in self._looking:
            self._again.add(container_id)  # what is being looked at now may be older than the reason to look
            return
        task = asyncio.create_task(self._look(container_id), name=f"look at {container_id[:12]}")
        self._looking[container_id] = task
        task.add_done_callback(lambda done: self._looked(container_id))

    def alive(self) -> list[str]:
        """Those that run, as far as is known."""
        return [one.id for one in self._published.values() if one is not None and one.state in _ALIVE]

    async def has_outlook(self, container_id: str) -> None:
        """It has another one: told without asking dockerd, which has nothing to do with it."""
        before = self._published.get(container_id)
        if before is not None and before.state in _ALIVE:
            status = before.model_copy(update={"outlook": self._outlook_of(container_id)})
            if status != before:
                self._published[container_id] = status
                await self._told(self._publisher.publish_container(status))

    # Following

    async def _follow(self) -> None:
        """One connection's life.

        Raises:
            DockerFailed, StepTimeout: always; it ends no other way.

        """
        # With the stream's headers dockerd has not subscribed us quite yet: what falls in between is in its backlog.
        self._subscribed_nano = time.time_ns()
        since = self._last_nano or self._subscribed_nano
        queue: asyncio.Queue[DockerEvent | AgentError] = asyncio.Queue()
        async with self._docker.events(since) as events:
            reader = asyncio.create_task(self._read(events, queue), name="Docker's events")
            try:
                await self._engine_is(await self._engine())
                await self._reconcile()
                log.info("following Docker's events: %d containers", len(self._published))
                self._pause = FIRST_PAUSE
                while True:
                    await self._next(queue)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, events: AsyncIterator[DockerEvent], queue: asyncio.Queue[DockerEvent | AgentError]) -> None:
        """Take events off the stream, whatever the handlers do: dockerd drops them for a slow reader."""
        try:
            async for event in events:
                # what comes from dockerd's backlog is old by nature, and all has been listed since
                if self._subscribed_nano < event.time_nano < time.time_ns() - LATE_SECONDS * 1e9:
                    self._late = True
                queue.put_nowait(event)
        except AgentError as error:
            queue.put_nowait(error)

    async def _next(self, queue: asyncio.Queue[DockerEvent | AgentError]) -> None:
        event = await queue.get()
        if isinstance(event, AgentError):
            raise event
        self._last_nano = max(event.time_nano, self._last_nano or 0)
        try:
            await self._handle(event)
        except AgentError:
            raise
        except Exception:
            log.exception("skipped the event %s %s of %s", event.kind, event.action, event.id[:12])
        if queue.qsize() > BACKLOG:
            log.warning("%d events are waiting: reading the list anew", queue.qsize())
            await self._reconcile()
        elif self._late and queue.empty():
            self._late = False
            log.warning("Docker's events were read late: some may be lost; reading the list anew")
            await self._reconcile()

    async def _handle(self, event: DockerEvent) -> None:
        for callback in self._callbacks:
            await self._told(callback(event))
        if event.action in _EXECS:
            return
        await self._told(self._publisher.publish_event(self._event(event)))
        container_id = event.container_id
        if event.kind == "daemon":
            await self._engine_is(await self._engine())
        elif event.kind == "container" and event.action == "destroy":
            await self._gone(container_id)
            if container_id in self._looking:
                self._again.add(container_id)  # what it is about to see is from before the end
        elif container_id and event.action not in _NO_NEWS:
            self.refresh(container_id)

    async def _engine_is(self, engine: Engine | None) -> None:
        if engine is not None or self._down is not True:
            await self._told(self._publisher.engine_changed(engine))
        self._down = engine is None

    async def _told(self, telling: Awaitable[None]) -> None:
        """Nobody who is told may stop the others from hearing."""
        try:
            await telling
        except Exception:
            log.exception("a listener failed")

    # What is there

    async def _reconcile(self) -> None:
        """Publish what is there, remove what is not, and tell of the ends that no event told."""
        found = {summary.id: summary for summary in await self._docker.list()}
        for container_id, before in list(self._published.items()):
            now = found.get(container_id)
            if before is not None and before.state in _ALIVE and (now is None or now.state not in _ALIVE):
                await self._ended_unseen(before)
            if now is None:
                await self._gone(container_id)
        for summary in found.values():
            await self._publish(summary)
        await self._told(self._publisher.listed())
        for callback in self._list_callbacks:
            callback()
        if self._catching_up is not None:
            self._catching_up.cancel()
        alive = [summary.id for summary in found.values() if summary.state in _ALIVE]
        self._catching_up = asyncio.create_task(self._look_at(alive), name="look at what was listed")

    async def _look_at(self, containers: list[str]) -> None:
        """Those that run, one after the other: when they were started is not in the list.

        Nothing else of it is taken: an end that was seen here before its event could be told to nobody any more.
        """
        for container_id in containers:
            before = self._published.get(container_id)
            container: Container | None = None
            with contextlib.suppress(AgentError, TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    container = await self._docker.find(container_id)
            if container is None or before is None or before is not self._published.get(container_id):
                continue  # gone, or looked at meanwhile
            status = before.model_copy(update={"started_at": self._started_at(container)})
            if container.state == before.state and status != before:
                self._published[container_id] = status
                await self._told(self._publisher.publish_container(status))

    async def _ended_unseen(self, before: ContainerStatus) -> None:
        event = DockerEvent("container", "die", "", before.id, before.name, {}, time.time_ns())
        for callback in self._callbacks:
            await self._told(callback(event))

    async def _look(self, container_id: str) -> None:
        """Inspect rather than list: it waits for a change that is being made, and so shows its end.

        On a container that is being started it waits until that is done, which on a target takes a whole move.
        """
        try:
            container = await self._docker.find(container_id)
        except StepTimeout:
            self._again.add(container_id)
        except DockerFailed as error:
            log.info("could not look at %s: %s", container_id[:12], error.message)  # the re-list will
        else:
            if container is None:
                await self._gone(container_id)
            else:
                await self._publish(container)

    def _looked(self, container_id: str) -> None:
        task = self._looking.pop(container_id)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("could not publish %s", container_id[:12], exc_info=error)
        if container_id in self._again:
            self._again.discard(container_id)
            self.refresh(container_id)

    async def _stop_looking(self) -> None:
        self._again.clear()
        tasks = [*self._looking.values(), *([self._catching_up] if self._catching_up is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self, found: Container | Summary) -> None:
        try:
            status = self._status(found)
        except ValueError:
            log.exception("skipped the container %s", found.id[:12])
            return
        if self._published.get(status.id) != status:
            self._published[status.id] = status
            await self._told(self._publisher.publish_container(status))

    async def _gone(self, container_id: str) -> None:
        if container_id in self._published:
            del self._published[container_id]
            await self._told(self._publisher.remove_container(container_id))

    def _status(self, found: Container | Summary) -> ContainerStatus:
        return ContainerStatus(
            host=self._host,
            id=found.id,
            name=found.name,
            image=found.image,
            state=found.state,
            health="" if found.health == "none" else found.health,
            labels=dict(found.labels),
            started_at=self._started_at(found),
            networks={each.network: each.addresses for each in found.networks},
            volumes=_volumes(found),
            migration=self._migration_of(found.id),
            home=self._home_of(found.id) or None,
            outlook=self._outlook_of(found.id) if found.state in _ALIVE else None,
        )

    def _started_at(self, found: Container | Summary) -> datetime | None:
        """Of one that runs; the list does not have it, so what was known of it stands until it is looked at."""
        if found.state not in _ALIVE:
            return None
        if isinstance(found, Container):
            with contextlib.suppress(ValueError):
                started = datetime.fromisoformat(_NANOSECONDS.sub("", found.started_at))
                return started if started.tzinfo is not None else None
            return None
        before = self._published.get(found.id)
        return before.started_at if before is not None else None

    def _event(self, event: DockerEvent) -> Event:
        detail = {key: event.attributes[key] for key in _DETAILS if key in event.attributes}
        if event.kind != "container":
            detail["on"] = event.kind
        if event.action == "health_status":
            detail["health"] = event.detail
        name = event.name if event.kind == "container" else self._name_of(event.container_id)
        at = utc_now()
        with contextlib.suppress(ValueError, OverflowError):
            at = datetime.fromtimestamp(event.time_nano / 1e9, UTC)
        return Event(
            host=self._host,
            at=at,
            kind=event.action,
            container=name,
            container_id=event.container_id,
            migration=self._migration_of(event.container_id) if event.container_id else None,
            detail=detail,
        )

    def _name_of(self, container_id: str) -> str:
        status = self._published.get(container_id)
        return status.name if status is not None else ""
