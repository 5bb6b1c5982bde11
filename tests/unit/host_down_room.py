"""A host that goes down or has come up, on paper: a pretended Docker and pretended sleepers around the real thing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from agent.migration.journal import Entry
from agent.shutdown import hibernate, host_down, wishes
from agent.shutdown.host_down import HostDown
from agent.shutdown.host_plan import Going
from agent.shutdown.wishes import Wishes
from protocol.status import Event
from tests.unit.recorded import NAMES, container

MB = 1_000_000


class FakeDocker:
    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.did: list[tuple[str, str]] = []
        self.probed: asyncio.Queue[DockerEvent] = asyncio.Queue()
        self.health = ""
        """Of what is started."""

    @asynccontextmanager
    async def events(self, since: int) -> AsyncIterator[AsyncIterator[DockerEvent]]:
        async def told() -> AsyncIterator[DockerEvent]:
            while True:
                yield await self.probed.get()

        yield told()

    def probes(self, ref: str, health: str) -> None:
        found = self.containers[ref] = replace(self.containers[ref], health=health)
        self.probed.put_nowait(DockerEvent("container", "health_status", health, ref, found.name, {}, 1))

    async def find(self, ref: str) -> Container | None:
        return self.containers.get(ref)

    async def set_restart_policy(self, ref: str, policy: Mapping[str, Any]) -> None:
        self.did.append((f"policy {policy['Name']}", self.containers[ref].name))

    async def start(self, ref: str) -> None:
        self.did.append(("start", self.containers[ref].name))
        self.containers[ref] = replace(self.containers[ref], running=True, health=self.health)


class FakeSleepers:
    def __init__(self, docker: FakeDocker) -> None:
        self._docker = docker
        self.known: dict[str, tuple[Container, Wishes]] = {}
        self.fails: set[str] = set()
        self.busy: dict[str, bool] = {}
        """Those that a move has, and whether it lets go of them in time."""
        self.said: list[Event] = []

    async def learned(self) -> None: ...

    def is_busy(self, container_id: str) -> bool:
        return container_id in self.busy

    async def until_free(self, container_id: str, seconds: float) -> bool:
        return self.busy.get(container_id, True)

    def begin(self, container_id: str, reason: str) -> "asyncio.Task[bool]":
        async def sleep() -> bool:
            found = self._docker.containers[container_id]
            self._docker.did.append(("sleep", found.name))
            if found.name in self.fails:
                return False
            self._docker.containers[container_id] = replace(found, running=False)
            return True

        return asyncio.create_task(sleep())

    async def stop_otherwise(self, found: Container, wish: Wishes, seconds: float = 0) -> None:
        self._docker.did.append(("signal", found.name))
        self._docker.containers[found.id] = replace(found, running=False)

    async def publish(self, event: Event) -> None:
        self.said.append(event)


class Room:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.docker = FakeDocker()
        self.sleepers = FakeSleepers(self.docker)
        self.sizes: dict[str, int] = {}
        self.evacuate: Any = None
        self.open: list[Entry] = []
        """Migrations."""
        self.rates: list[float] = []
        """Of the links of moves that have ended, bytes a second."""

    def add(self, name: str, wish: str = "hibernate", size: int = MB, *, harmless: bool = True, **labels: str) -> str:
        recorded = container("docker28", NAMES[0])
        said = {f"com.docker.compose.{key}": to for key, to in labels.items()}
        policy = {"Name": "always"}
        one = replace(recorded, id=name * 8, name=name, running=True, labels=said, restart_policy=policy)
        self.docker.containers[one.id] = one
        self.sleepers.known[one.id] = one, Wishes(wish, wishes.COLD, 15, 23 if harmless else 0)
        self.sizes[one.id] = size
        return one.id

    def agent(self) -> HostDown:
        """A new one, as after a restart."""
        settings = SimpleNamespace(state_dir=self.state)
        host: Any = SimpleNamespace(name="node-a", docker=self.docker, settings=settings, journal=self)
        down = HostDown(host, self.sleepers, self.evacuate)  # type: ignore[arg-type]

        async def going() -> list[Going]:
            known = self.sleepers.known.values()
            return [
                Going(one.id, one.name, wish.on_shutdown, self.sizes[one.id])
                for one, wish in known
                if wish.on_shutdown != wishes.IGNORE
            ]

        down._going = going  # type: ignore[method-assign]
        return down

    async def link_rates(self, count: int) -> list[float]:
        return self.rates

    async def unfinished(self) -> list[Entry]:
        return self.open

    def result(self) -> str:
        return next(one.detail["result"] for one in self.sleepers.said if one.kind == "host-shutdown-ready")

    def written(self) -> dict[str, str]:
        found = json.loads((self.state / host_down.FILE).read_text())["containers"]
        return {one["name"]: one["what"] for one in found.values()}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(hibernate, "boot_id", lambda: "the next boot")
