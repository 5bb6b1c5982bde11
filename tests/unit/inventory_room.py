"""An inventory that runs between a pretended Docker and a pretended publisher. No tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from agent.base.errors import DockerFailed
from agent.doors import docker_model
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container, Summary
from agent.inventory import Inventory
from protocol.status import ContainerStatus, Engine, Event

A, B = "a" * 64, "b" * 64


class FakeDocker:
    """Containers as a dict of id -> (name, state, health); events by hand."""

    def __init__(self) -> None:
        self.containers: dict[str, tuple[str, str, str]] = {}
        self.stream: asyncio.Queue[DockerEvent | None] = asyncio.Queue()
        self.subscribed: list[int | None] = []
        self.down = False
        self.hold = asyncio.Event()
        """Cleared, an inspect waits, as on a container that is being started."""
        self.hold.set()
        self.inspects = 0
        self.nano = time.time_ns()

    def tell(self, action: str, actor: str, kind: str = "container", **attributes: str) -> None:
        self.nano += 1
        action, _, detail = action.partition(": ")
        name = self.containers.get(actor, ("gone", "", ""))[0]
        self.stream.put_nowait(DockerEvent(kind, action, detail, actor, name, attributes, self.nano))

    @asynccontextmanager
    async def events(self, since: int | None = None) -> AsyncIterator[AsyncIterator[DockerEvent]]:
        if self.down:
            raise DockerFailed("Docker can't be reached", http_status=0)
        self.subscribed.append(since)
        yield self._events()

    async def _events(self) -> AsyncIterator[DockerEvent]:
        while (event := await self.stream.get()) is not None:
            yield event
        raise DockerFailed("Docker's stream of events ended", http_status=0)

    async def engine(self) -> Engine:
        return Engine(docker="28.5.2")

    async def list(self) -> tuple[Summary, ...]:
        return tuple(
            docker_model.Summary(container, name, "busybox", state, health, {})
            for container, (name, state, health) in self.containers.items()
        )

    async def find(self, ref: str) -> Container | None:
        self.inspects += 1
        there = self.containers.get(ref)
        if not self.hold.is_set():
            await self.hold.wait()
        if there is None:
            return None
        name, state, health = there
        raw: dict[str, Any] = {
            "Id": ref,
            "Name": f"/{name}",
            "Image": "sha256:x",
            "State": {"Status": state, "Health": {"Status": health}},
            "Config": {"Image": "busybox"},
            "HostConfig": {},
        }
        return docker_model.container(raw)


class Told:
    """A publisher that keeps all, and the newest of each."""

    def __init__(self) -> None:
        self.containers: dict[str, ContainerStatus] = {}
        self.log: list[str] = []
        self.events: list[Event] = []
        self.engines: list[Engine | None] = []
        self.changed = asyncio.Event()
        self.fail = False

    async def engine_changed(self, engine: Engine | None) -> None:
        self.engines.append(engine)
        self.changed.set()

    async def publish_container(self, container: ContainerStatus) -> None:
        if self.fail:
            raise RuntimeError("a bug of the publisher")
        self.containers[container.id] = container
        self.log.append(f"{container.name} {container.state} {container.health}".strip())
        self.changed.set()

    async def remove_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)
        self.log.append(f"removed {container_id[:1]}")
        self.changed.set()

    async def listed(self) -> None:
        """All is published."""

    async def publish_event(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(5):
            while not so():
                self.changed.clear()
                await self.changed.wait()


class Room:
    """An inventory that runs, between a pretended Docker and a pretended publisher."""

    def __init__(self, **options: Any) -> None:
        self.docker = FakeDocker()
        self.told = Told()
        self.inventory = Inventory(self.docker, "host-a", self.told, **options)  # type: ignore[arg-type]
        self.heard: list[tuple[str, str]] = []
        self.inventory.on_event(self._hear)

    async def _hear(self, event: DockerEvent) -> None:
        self.heard.append((event.action, event.container_id[:1]))
        self.told.changed.set()

    def state(self, container: str) -> str:
        found = self.told.containers.get(container)
        return found.state if found else ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.inventory.run())
        await self.told.until(lambda: bool(self.told.engines))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
