"""What changes at a dockerd is retained at the broker within a second, and what dockerd has dropped is found out."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from agent.doors.mqtt_link import connect
from lab.cluster import Cluster
from lab.host import Host
from lab.shell import PATIENCE
from protocol import topics
from protocol.reading import read
from protocol.status import ContainerStatus, Event

A = "a28"
BOUND_SECONDS = 1.0
LONGEST_SECONDS = 30.0 * PATIENCE

FLOOD = """
import http.client, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/docker.sock")
docker = Unix("docker")
for number in range(int(sys.argv[2])):
    body = '{"Cmd": ["true"]}'
    docker.request("POST", f"/containers/{sys.argv[1]}/exec", body, {"Content-Type": "application/json"})
    docker.getresponse().read()
"""
"""Each makes an exec that is never started, and an event with every label of the container."""


class Ear:
    """What a host says at the broker of its containers and of what happens, with when it came."""

    def __init__(self) -> None:
        self.containers: dict[str, ContainerStatus] = {}
        self.events: list[tuple[Event, datetime]] = []
        self._changed = asyncio.Event()

    def hear(self, topic: str, payload: bytes) -> None:
        if topic == topics.events(A):
            self.events.append((read(Event, payload), datetime.now(UTC)))
        elif payload:
            status = read(ContainerStatus, payload)
            self.containers[status.id] = status
        else:
            self.containers.pop(topic.rpartition("/")[2], None)
        self._changed.set()

    def named(self, name: str) -> ContainerStatus | None:
        return next((one for one in self.containers.values() if one.name == name), None)

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONGEST_SECONDS):
            while not so():
                self._changed.clear()
                await self._changed.wait()

    def last(self, kind: str) -> datetime:
        """When Docker says that this happened last."""
        return max(event.at for event, _ in self.events if event.kind == kind)


@asynccontextmanager
async def listening(three: Cluster) -> AsyncIterator[Ear]:
    ear = Ear()

    async def hear() -> None:
        async with connect(three.broker, "inventory") as link:
            await link.subscribe(topics.container_status(A, "+"), topics.events(A))
            async for message in link.messages():
                ear.hear(message.topic, message.payload)

    task = asyncio.create_task(hear())
    try:
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_restarts_renames_health_networks_and_volumes_are_retained_within_a_second(three: Cluster) -> None:
    host = three[A]
    host.ensure_image("busybox")
    took: dict[str, float] = {}
    async with listening(three) as ear:

        async def step(kind: str, so: Callable[[ContainerStatus], bool], *words: str, name: str = "one") -> None:
            """Do something; how long after Docker's own event of it the retained status said so."""
            before = len(ear.events)

            def told() -> bool:
                return any(event.kind == kind for event, _ in ear.events[before:])

            def shown() -> bool:
                found = ear.named(name)
                return found is not None and so(found)

            await asyncio.to_thread(host.docker, *words)
            await ear.until(shown)
            arrived = datetime.now(UTC)
            await ear.until(told)
            took[f"{kind} {words[0]}"] = (arrived - ear.last(kind)).total_seconds()

        try:
            probe = ["--health-cmd", "test -e /well", "--health-interval", "200ms", "--health-retries", "1"]
            run = ["run", "-d", "--init", "--name", "one", *probe, "-v", "kept:/kept", "busybox", "sleep", "1d"]
            await step("start", lambda one: one.state == "running" and one.started_at is not None, *run)
            found = ear.named("one")
            assert found is not None
            started = found.started_at
            assert found.volumes == ("kept",)
            assert found.networks["bridge"]
            await step("health_status", lambda one: one.health == "healthy", "exec", "one", "touch", "/well")
            host.docker("network", "create", "shop")
            await step("connect", lambda one: bool(one.networks.get("shop")), "network", "connect", "shop", "one")
            await step("disconnect", lambda one: "shop" not in one.networks, "network", "disconnect", "shop", "one")
            restarted = ["restart", "--time", "0", "one"]
            await step(
                "restart", lambda one: one.state == "running" and one.started_at not in (None, started), *restarted
            )
            await step("pause", lambda one: one.state == "paused", "pause", "one")
            await step("unpause", lambda one: one.state == "running", "unpause", "one")
            await step("rename", lambda one: one.name == "two", "rename", "one", "two", name="two")
            await step("die", lambda one: one.state == "exited", "kill", "two", name="two")
            host.docker("rm", "two")
            await ear.until(lambda: ear.named("two") is None)
            took["destroy"] = (datetime.now(UTC) - ear.last("destroy")).total_seconds()
        finally:
            host.docker("rm", "--force", "one", "two", check=False)
            host.docker("network", "rm", "shop", check=False)
            host.docker("volume", "rm", "kept", check=False)
    worst = max(took.items(), key=lambda each: each[1])
    print(f"retained after Docker's event, in ms: { {what: round(each * 1000) for what, each in took.items()} }")
    assert worst[1] < BOUND_SECONDS * PATIENCE, took


async def test_events_that_dockerd_has_dropped_for_a_slow_reader_are_found_out(three: Cluster) -> None:
    """The agent is stopped, and more happens than dockerd keeps for it; among what it drops is a rename."""
    host = three[A]
    host.ensure_image("busybox")
    labels = [word for number in range(20) for word in ("--label", f"l{number}={'x' * 3000}")]
    async with listening(three) as ear:
        try:
            host.docker("run", "-d", "--init", "--name", "loud", *labels, "busybox", "sleep", "1d")
            host.docker("run", "-d", "--init", "--name", "before", "busybox", "sleep", "1d")
            await ear.until(lambda: ear.named("before") is not None and ear.named("loud") is not None)
            host.kill_agent(signal.SIGSTOP)
            stopped = time.monotonic()
            try:
                await asyncio.to_thread(flood, host, 1200)
                host.docker("rename", "before", "after")
            finally:
                await asyncio.sleep(max(0, stopped + 3 - time.monotonic()))  # late enough to be told from a short pause
                host.kill_agent(signal.SIGCONT)
            await ear.until(lambda: ear.named("after") is not None and ear.named("before") is None)
            assert "rename" not in {event.kind for event, _ in ear.events}, "dockerd has not dropped it: no proof"
        finally:
            host.docker("rm", "--force", "loud", "before", "after", check=False)


def flood(host: Host, count: int) -> None:
    host.run(["python3", "-c", FLOOD, "loud", str(count)], timeout=60)
