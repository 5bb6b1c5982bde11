"""The inventory against real engines: what changes at a dockerd is told, whatever becomes of the dockerd."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from agent.base.errors import DockerFailed
from agent.doors.docker import Docker, unavailable
from agent.inventory import Inventory
from lab import Host
from protocol.status import ContainerStatus, Event
from protocol.status import Engine as EngineStatus
from tests.e2e.engines import SLEEP


class Told:
    """A publisher that keeps the newest of all."""

    def __init__(self) -> None:
        self.containers: dict[str, ContainerStatus] = {}
        self.engines: list[bool] = []
        self.kinds: list[str] = []
        self.changed = asyncio.Event()

    async def engine_changed(self, engine: EngineStatus | None) -> None:
        self.engines.append(engine is not None)
        self.changed.set()

    async def publish_container(self, container: ContainerStatus) -> None:
        self.containers[container.id] = container
        self.changed.set()

    async def remove_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)
        self.changed.set()

    async def listed(self) -> None:
        """All is published."""

    async def publish_event(self, event: Event) -> None:
        self.kinds.append(event.kind)
        self.changed.set()

    async def shows(self, container: str, seconds: float = 1.0, **wanted: str) -> None:
        """Wait until a container is so; nothing wanted, until it is gone."""

        def so() -> bool:
            found = self.containers.get(container)
            if found is None or not wanted:
                return found is None and not wanted
            return {key: getattr(found, key) for key in wanted} == wanted

        await self._until(so, seconds)

    async def engine(self, *, there: bool, seconds: float) -> None:
        """Wait until the newest word of the dockerd is that it's there, or that it isn't."""
        await self._until(lambda: self.engines[-1:] == [there], seconds)

    async def _until(self, so: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not so():
                self.changed.clear()
                await self.changed.wait()


async def test_changes_are_told_within_a_second(host: Host, docker: Docker) -> None:
    told = Told()
    following = asyncio.create_task(Inventory(docker, host.name, told).run())
    try:
        await told.engine(there=True, seconds=10)
        probe = {"Test": ["CMD", "test", "-e", "/well"], "Interval": 200_000_000, "Retries": 1}
        made = await docker.create("one", {**SLEEP, "Healthcheck": probe})
        await told.shows(made, name="one", state="created")
        await docker.start(made)
        await told.shows(made, state="running")
        await told.shows(made, seconds=3, health="unhealthy")
        host.docker("exec", "one", "touch", "/well")
        await told.shows(made, seconds=3, health="healthy")
        await docker.rename(made, "two")
        await told.shows(made, name="two")
        host.docker("pause", "two")
        await told.shows(made, state="paused")
        host.docker("unpause", "two")
        await told.shows(made, state="running")
        host.docker("restart", "--time", "0", "two")
        await told.shows(made, state="running")
        await docker.kill(made)
        await told.shows(made, state="exited")
        await docker.remove(made)
        await told.shows(made)
        assert {"create", "start", "die", "rename", "pause", "unpause", "kill", "restart", "destroy"} <= set(told.kinds)
        assert not [kind for kind in told.kinds if kind.startswith("exec")]
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def test_a_dockerd_that_restarts_is_followed_again(host: Host, docker: Docker) -> None:
    made = await docker.create("one", {**SLEEP, "HostConfig": {"RestartPolicy": {"Name": "always"}}})
    await docker.start(made)
    told, died = Told(), asyncio.Event()
    inventory = Inventory(docker, host.name, told)

    async def hear(event: Any) -> None:
        if event.action == "die" and event.container_id == made:
            died.set()

    inventory.on_event(hear)
    following = asyncio.create_task(inventory.run())
    try:
        await told.shows(made, seconds=5, state="running")
        await asyncio.to_thread(host.kill_dockerd)
        await told.engine(there=False, seconds=5)
        with pytest.raises(DockerFailed) as failed:
            await docker.list()
        assert unavailable(failed.value) is not None
        await asyncio.to_thread(host.start_dockerd)
        async with asyncio.timeout(30):
            await told.engine(there=True, seconds=30)
            await died.wait()
        await told.shows(made, seconds=20, state="running")
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
