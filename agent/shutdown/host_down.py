"""The host goes down: its containers are brought to safety first, and are there again after its boot, each once.

Whoever says that it goes down (logind, systemd that stops the agent with everything else, a notice of the cloud) gives
a time, and all of it is planned for that. What is done with a container is written down before it is done, with its
restart policy, which is `no` from then on: dockerd starts nothing at boot that this agent is to start, in its order.
"""

import asyncio
import contextlib
import glob
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from agent.base import durable
from agent.base.errors import AgentError
from agent.base.tasks import beside, until_it_works
from agent.checkpoint import freezer, measure
from agent.doors import systemd
from agent.doors.docker import unavailable
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from agent.migration import choosing, kept
from agent.migration.host import Host
from agent.migration.kept import Kept
from agent.runtime import asleep
from agent.shutdown import hibernate, host_plan, labels, order
from agent.shutdown.host_plan import STOP, Going, Rates, Step
from agent.shutdown.order import Waiting
from agent.shutdown.sleepers import HOST_DOWN, Sleepers
from agent.shutdown.wishes import EVACUATE, HIBERNATE, IGNORE
from protocol.base import utc_now
from protocol.commands import Ping, ShutdownNotice
from protocol.status import Event

log = logging.getLogger("agent.shutdown")

FILE: Final = "going-down.json"
DISK, LINK = 100e6, 50e6
"""Bytes a second, where nothing is known yet."""
NOTICE: Final = "a notice says that the host goes down"
HEALTHY_SECONDS = 60.0
TICK_SECONDS = 2.0
MORE_TIME: Final = f"EXTEND_TIMEOUT_USEC={60_000_000}"
RESTARTS = ("always", "unless-stopped", "on-failure")


class Evacuates(Protocol):
    """Moves containers to other hosts (evacuations.py)."""

    def begins(self) -> None:
        """The host goes down: nothing more may come to it."""

    async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
        """Those that are still here, and why."""

    def stays(self) -> None:
        """It does not go down after all."""


def _bytes_asleep() -> int:
    """Of all images together, those that are being written among them: they may get another name meanwhile."""
    found = 0
    for folder in glob.iglob(f"{asleep.ROOT}/*/images"):  # noqa: PTH207 - pathlib's stops at what is gone
        with contextlib.suppress(OSError):
            found += sum(entry.stat().st_size for entry in os.scandir(folder))
    return found


def _may_change_health(event: DockerEvent, container_id: str) -> bool:
    return event.container_id == container_id and event.action in ("health_status", "die", "destroy")


class HostDown:
    """See the module."""

    def __init__(self, host: Host, sleepers: Sleepers, evacuate: Evacuates | None = None) -> None:
        self._host = host
        self._sleepers = sleepers
        self._evacuate = evacuate
        self._task: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._rates = Rates(DISK, LINK)
        self._boot = ""
        self._done: dict[str, dict[str, Any]] = {}
        """What was done with whom and is to be undone, and in which boot: the content of the file."""
        self._notice: float | None = None
        """Until when a notice gives time, by this boot's clock; in the file, too, until all is done that can be."""
        self._booted = False
        self._ends = 0.0

    # --- going down ---

    def begin(self, seconds: float, why: str) -> "asyncio.Task[None]":
        """Bring the containers to safety; what goes on already goes on, by the earlier of the two deadlines."""
        ends = time.monotonic() + seconds
        staying, self._staying = self._staying, None
        if staying is not None:
            staying.cancel()  # what it has not started yet is still in the file
        if self._task is None or self._task.done():
            self._ends = ends
            self._task = asyncio.create_task(self._drain(why, staying), name="the host goes down")
        self._ends = min(self._ends, ends)
        systemd.notify(MORE_TIME)  # it may be stopping this agent from now on
        return self._task

    def heard(self, command: Ping | ShutdownNotice) -> None:
        """Somebody says that the host goes down, or that it does not; or nothing of the kind."""
        if isinstance(command, ShutdownNotice) and command.called_off:
            self.called_off()
        elif isinstance(command, ShutdownNotice):
            self._notice = time.monotonic() + command.seconds
            self.begin(command.seconds, NOTICE)

    @property
    def left(self) -> float:
        return self._ends - time.monotonic()

    async def _drain(self, why: str, staying: "asyncio.Task[None] | None") -> None:
        if staying is not None:
            await asyncio.wait({staying})
        if not self._booted:
            self._booted, self._done = True, self._read()[1]
        self._boot = hibernate.boot_id()
        if self._notice is not None:  # an agent after this one is to know of it
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._write)
        if self._evacuate is not None:
            self._evacuate.begins()
        await self._sleepers.learned()
        self._rates = replace(self._rates, link=await choosing.usual_rate(self._host.journal) or LINK)
        went, began = await self._going(), time.monotonic()
        steps = host_plan.plan(went, self.left, self._rates, can_evacuate=self._evacuate is not None)
        log.warning("%s: %d containers in %.0f s: %s", why, len(steps), self.left, "; ".join(map(str, steps)))
        await self._say("host-shutdown-planned", why=why, seconds=f"{self.left:.0f}", plan="; ".join(map(str, steps)))
        result: dict[str, str] = {}
        async with beside(self._ask_for_time()):
            moves = asyncio.create_task(self._move(tuple(step for step in steps if step.what == EVACUATE)))
            stay = [step for step in steps if step.what != EVACUATE]
            # one that is being moved, or of which a checkpoint is being taken, keeps no other one waiting
            for step in sorted(stay, key=lambda step: self._sleepers.is_busy(step.one.id)):
                work = self._put_to_sleep if step.what == HIBERNATE else self._stop
                result[step.one.name] = await self._whatever_comes(step.one, work)
            for one in await moves:
                late = self.left < self._seconds_to_sleep(one)
                result[one.name] = await self._whatever_comes(one, self._stop if late else self._put_to_sleep)
        moved = {step.one.name: "evacuated" for step in steps if step.one.name not in result}
        told = "; ".join(f"{name}: {what}" for name, what in {**moved, **result}.items())
        self._notice = None
        with contextlib.suppress(OSError):
            await self._forget()
        log.warning("ready to go down after %.1f s: %s", time.monotonic() - began, told)
        await self._say("host-shutdown-ready", why=why, took=f"{time.monotonic() - began:.1f}", result=told)

    async def _going(self) -> list[Going]:
        found = []
        for container, wish in list(self._sleepers.known.values()):
            if wish.on_shutdown == IGNORE:
                continue
            with contextlib.suppress(AgentError, OSError, ValueError, KeyError):  # it ends just now
                pid = hibernate.first_process(container.id)
                tasks = freezer.cgroup_of(pid).tasks()
                size = await asyncio.to_thread(measure.image_bytes, pid, tasks)
                priority = labels.read(container.labels).priority
                found.append(Going(container.id, container.name, wish.on_shutdown, size, priority))
        return found

    def _seconds_to_sleep(self, one: Going) -> float:
        return one.bytes / self._rates.disk + host_plan.SETUP_SECONDS

    async def _whatever_comes(self, one: Going, work: Callable[[Going], Awaitable[str]]) -> str:
        """One that was removed meanwhile, a disk that is full, or a bug costs none of the others its memory."""
        try:
            if self._sleepers.is_busy(one.id):
                patience = max(1.0, min(self.left / 2, self.left - self._seconds_to_sleep(one)))
                if not await self._sleepers.until_free(one.id, patience):
                    return "left to the move or checkpoint that it is part of"
                if await self._host.docker.find(one.id) is None:
                    return "moved away"
            return await work(one)
        except Exception as error:
            log.exception("%s is left to Docker", one.name)
            return f"left to Docker: {type(error).__name__}: {error}"

    async def _move(self, steps: tuple[Step, ...]) -> list[Going]:
        """Those that are left."""
        if self._evacuate is None or not steps:
            return []
        # There must be time left to hibernate those that can't be moved; no more than half of it is kept for that.
        seconds = max(1.0, self.left / 2, self.left - sum(self._seconds_to_sleep(step.one) for step in steps))
        try:
            left = await self._evacuate(frozenset(step.one.id for step in steps), seconds)
        except Exception as error:
            bug = None if isinstance(error, AgentError) else error
            log.warning("nothing could be moved away: %s", error, exc_info=bug)
            return [step.one for step in steps]
        return [step.one for step in steps if step.one.id in left]

    async def _put_to_sleep(self, one: Going) -> str:
        if one.id not in self._sleepers.known:
            return "gone"
        container, _ = self._sleepers.known[one.id]
        try:
            await self._take_policy(container, HIBERNATE)
            began = time.monotonic()
            async with asyncio.timeout(max(1.0, self.left)):
                slept = await asyncio.shield(self._sleepers.begin(one.id, HOST_DOWN))
        except (AgentError, OSError) as error:  # a TimeoutError is one
            log.warning("%s does not sleep: %s", one.name, error)
            slept = False
        if not slept:
            stopped = await self._stop(one)
            with contextlib.suppress(KeyError, OSError):  # at boot it is started as Docker would have it
                self._done[one.id]["what"] = STOP
                await asyncio.to_thread(self._write)
            return f"not hibernated, {stopped}"
        if one.bytes > 16 << 20:  # of less the setup is all
            self._rates = replace(self._rates, disk=one.bytes / max(0.1, time.monotonic() - began))
        return "hibernated"

    async def _stop(self, one: Going) -> str:
        """Ask it to end. One whose stop signal does so itself is left to dockerd, which will send it."""
        if one.id not in self._sleepers.known:
            return "gone"
        container, wish = self._sleepers.known[one.id]
        if not wish.stop_signal:
            return "left to Docker"
        try:
            await self._take_policy(container, STOP)
        except (AgentError, OSError) as error:  # dockerd would start it again at once
            return f"left to Docker: {error}"
        with contextlib.suppress(AgentError, OSError):
            await self._sleepers.stop_otherwise(container, wish, max(1.0, min(host_plan.STOP_SECONDS, self.left)))
        return "stopped"

    async def _take_policy(self, container: Container, what: str) -> None:
        """Nobody but the agent starts it again."""
        policy = kept.policy_of(self._host.settings.state_dir, container)
        self._done[container.id] = {"name": container.name, "what": what, "policy": policy.get("Name", "no")}
        await asyncio.to_thread(self._write)
        state = self._host.settings.state_dir
        await asyncio.to_thread(kept.keep, state, container.id, Kept(policy, container.started_at))
        await self._host.docker.set_restart_policy(container.id, {"Name": "no"})

    async def _ask_for_time(self) -> None:
        """In the time that was planned for, and as long as something goes on after it, systemd is to have patience."""
        before = -1
        while True:
            now = _bytes_asleep()
            if self.left > 0 or now + len(self._done) != before:
                systemd.notify(MORE_TIME)
            before = now + len(self._done)
            await asyncio.sleep(TICK_SECONDS)

    async def close(self) -> None:
        """The agent ends, and the host does not: nothing more is begun. What has been done is in the file."""
        tasks = [task for task in (self._task, self._staying) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- staying up, and coming up ---

    def called_off(self) -> "asyncio.Task[None]":
        """It stays up after all: what was brought to safety goes on."""
        self._notice = None
        self._staying = asyncio.create_task(self._go_on(), name="the host stays up")
        return self._staying

    async def _go_on(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})  # it goes on if this is cancelled, since the host goes down after all
        if self._evacuate is not None:
            try:
                self._evacuate.stays()
            except AgentError as error:
                log.warning("the host stays cordoned: %s", error.message)
        if not self._done:
            self._boot, self._done, _ = self._read()
        await until_it_works("starting what was brought to safety", self._wake, 1.0)

    async def boot(self) -> None:
        """After the first look at Docker: what an agent before this one brought to safety, in an earlier boot."""
        if self._booted:
            return
        self._booted = True
        self._boot, self._done, notice = self._read()
        if notice is not None and self._boot == hibernate.boot_id():
            await self._take_up(notice)
        elif self._boot and self._boot != hibernate.boot_id():
            work = until_it_works("starting what was hibernated", self._wake, 1.0)
            waking = self._staying = asyncio.create_task(work, name="start what was hibernated")
            try:
                await asyncio.wait({waking})
            finally:
                waking.cancel()

    async def _take_up(self, notice: float) -> None:
        """An agent before this one was told, and ended before it was ready."""
        if (left := notice - time.monotonic()) > 0:
            self._notice = notice
            self.begin(left, f"{NOTICE}, as an agent before this one has heard")
            return
        log.warning("the time that a notice gave is over, and the host is still up")
        await self._forget()

    async def _wake(self) -> None:
        """Start them again; each is forgotten when that was done, so that whoever stops this here loses none."""
        waiting = []
        elsewhere = {entry.record.get("container_id") for entry in await self._host.journal.unfinished()}
        for container_id, about in list(self._done.items()):
            if container_id in elsewhere:
                continue  # a move has it, and decides where it runs
            container = await self._host.docker.find(container_id)
            again = about["what"] == HIBERNATE or hibernate.sleeps(container_id) or about["policy"] in RESTARTS
            if container is not None and container.running:
                await self._give_policy_back(container)
            elif container is not None and again:
                waiting.append(Waiting(container.id, container.name, container.labels))
        left = {one.id for one in waiting}
        await self._forget(*(each for each in self._done if each not in left))
        watched = order.to_be_healthy(waiting)
        for round_ in order.rounds(waiting):
            starts = [self._start(one, healthy=one.service in watched) for one in round_]
            for failure in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure

    async def _give_policy_back(self, container: Container) -> None:
        """To one that has run all the time; who was started again gets its own by that (kept.py)."""
        state = self._host.settings.state_dir
        wanted = await asyncio.to_thread(kept.recall, state, container.id)
        if wanted is not None and wanted.started_at == container.started_at:
            await self._host.docker.set_restart_policy(container.id, dict(wanted.policy))
            await asyncio.to_thread(kept.let_go, state, container.id)

    async def _forget(self, *containers: str) -> None:
        for each in containers:
            self._done.pop(each, None)
        if self._done:
            await asyncio.to_thread(self._write)
        else:
            (self._host.settings.state_dir / FILE).unlink(missing_ok=True)

    async def _start(self, one: Waiting, *, healthy: bool) -> None:
        try:
            await self._host.docker.start(one.id)
        except AgentError as error:
            if unavailable(error) is not None:
                raise  # dockerd is away, and it is tried again
            await self._forget(one.id)
            log.warning("%s can't be started again: %s", one.name, error.message)
            await self._say("boot-start-failed", container=one.name, why=error.message)
            return
        await self._forget(one.id)
        if healthy:
            await self._until_it_is_known_to_be_healthy(one.id)

    async def _until_it_is_known_to_be_healthy(self, container_id: str) -> None:
        """Or not to be, or that it has ended; or until that takes too long."""
        docker = self._host.docker
        with contextlib.suppress(TimeoutError, AgentError):
            async with asyncio.timeout(HEALTHY_SECONDS), docker.events(time.time_ns()) as events:
                while (found := await docker.find(container_id)) is not None and found.health == "starting":
                    while not _may_change_health(await anext(events), container_id):
                        pass

    def _write(self) -> None:
        content = {"boot": self._boot, "containers": self._done, "notice": self._notice}
        durable.write(self._host.settings.state_dir / FILE, json.dumps(content))

    def _read(self) -> tuple[str, dict[str, dict[str, Any]], float | None]:
        try:
            found = json.loads((self._host.settings.state_dir / FILE).read_text())
            return found["boot"], found["containers"], found.get("notice")
        except (OSError, ValueError, KeyError):
            return "", {}, None

    async def _say(self, kind: str, container: str = "", **detail: str) -> None:
        event = Event(host=self._host.name, at=utc_now(), kind=kind, container=container, detail=detail)
        await self._sleepers.publish(event)
