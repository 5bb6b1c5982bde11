"""Containers of this host that hibernate: known beforehand, put to sleep when stopped, told of when they wake.

A container whose stop signal does nothing to it is hibernated by whatever stops it: `docker stop`, Compose, a dockerd
that ends. All of them send that signal and wait for as long as its stop timeout says; the event of it is heard here,
the container's lock in dockerd is free meanwhile, and its end ends the stop as any other would. dockerd does not
restart one that ended after its stop signal, whatever its policy is.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.base.errors import AgentError, Cancelled, ContainerGone, StepFailed
from agent.base.tasks import until_it_works
from agent.checkpoint import freezer, proc
from agent.doors.docker_events import DockerEvent
from agent.doors.docker_model import Container
from agent.migration.host import Host
from agent.migration.machine import Role
from agent.migration.restarting import number
from agent.migration.run import Run
from agent.migration.sources import Sources
from agent.runtime import asleep
from agent.shutdown import hibernate, wishes
from agent.shutdown.hibernate import ROOT, Slept
from agent.shutdown.wishes import Wishes
from protocol.base import new_migration_id, utc_now
from protocol.status import Event

log = logging.getLogger("agent.hibernate")

STOP, HOST_DOWN = "stop", "host-shutdown"
LOOK_SECONDS = 0.2
LEARN_SECONDS = 5.0
TAKE_BACK_SECONDS = 20.0
FALLBACK_SECONDS = 10.0
"""Docker's own stop timeout."""
Publish = Callable[[Event], Awaitable[None]]


class Sleepers:
    """See the module."""

    def __init__(self, host: Host, sources: Sources, publish: Publish) -> None:
        self._host = host
        self._sources = sources
        self.publish = publish
        self.known: dict[str, tuple[Container, Wishes]] = {}
        """Every running container that wishes anything, as Docker last said."""
        self._work: dict[str, asyncio.Task[bool]] = {}
        self._learning: set[asyncio.Task[None]] = set()
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, str] = {}
        """Those whose hibernation an agent before this one did not see to its end, and why it was begun."""
        self._poked = -1

    # --- from beginning to end ---

    async def open(self) -> None:
        """Take up what an agent before this one has left, and listen to the runtime."""
        await asyncio.to_thread(_make_root)
        self._poked = os.open(ROOT / asleep.POKE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._poked, self._heard)
        for part in ROOT.glob(f"*{asleep.PART}"):
            self._taking[part.stem] = self._learn(self._take_up(part))
        for record in ROOT.glob(f"*/{asleep.RECORD}"):
            if record.parent.suffix != asleep.WAKING:
                await self._see_it_end(record)

    async def close(self) -> None:
        """Let what has begun come to its end: a stop waits for it."""
        for task in self._learning:
            task.cancel()
        await asyncio.gather(*self._work.values(), *self._learning, return_exceptions=True)
        if self._poked >= 0:
            asyncio.get_running_loop().remove_reader(self._poked)
            os.close(self._poked)
            self._poked = -1

    async def _take_up(self, part: Path) -> None:
        """The agent ended in the middle. A CRIU that goes on without it has to end first."""
        container_id = part.stem
        while await asyncio.to_thread(proc.criu_in, part):
            await asyncio.sleep(LOOK_SECONDS)
        reason = ""
        with contextlib.suppress(OSError):
            reason = (part / "reason").read_text()
        await until_it_works(f"letting {container_id[:12]} go on", lambda: self._let_go_on(container_id), 1.0)
        await hibernate.remove(part)
        del self._taking[container_id]
        self._again[container_id] = reason
        if container_id in self.known:
            await self._learn_one(container_id)

    async def _let_go_on(self, container_id: str) -> None:
        try:
            pid = hibernate.first_process(container_id)
            group = freezer.cgroup_of(pid)
        except (AgentError, OSError, ValueError):
            return  # it has ended
        await hibernate.release(self._host, pid, group)

    async def _see_it_end(self, record: Path) -> None:
        """It was decided; whether the agent came to end it is to be seen."""
        with contextlib.suppress(AgentError, OSError, ValueError, KeyError):
            found = json.loads(record.read_text())
            same = found["boot"] == hibernate.boot_id() and proc.start_time(found["pid"]) == found["pid_start"]
            if same:
                await freezer.kill_frozen(freezer.cgroup_of(found["pid"]))

    # --- what Docker says ---

    def listed(self) -> None:
        """All was looked at anew."""
        self._learn(self._learn_all())

    async def on_event(self, event: DockerEvent) -> None:
        if event.kind == "network" and event.container_id in self.known:
            self._learn(self._learn_one(event.container_id))
        if event.kind != "container":
            return
        match event.action:
            case "start" | "rename" | "update" | "pause" | "unpause" | "die" if self._wishes_anything(event.attributes):
                self._learn(self._learn_one(event.id))
            case "kill":
                self._signalled(event)
            case "destroy":
                self.known.pop(event.id, None)
                for suffix in ("", asleep.PART, asleep.WAKING):
                    await hibernate.remove(ROOT / (event.id + suffix))

    def _wishes_anything(self, its: Mapping[str, str]) -> bool:
        return wishes.on_shutdown(its, self._host.settings.shutdown) != wishes.IGNORE

    def _learn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="learn what hibernates")
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)
        return task

    async def _learn_all(self) -> None:
        try:
            rows = await self._host.docker.list()
        except AgentError as error:
            log.info("what hibernates could not be learned: %s", error.message)  # the next list will
            return
        there = {row.id for row in rows}
        for folder in ROOT.iterdir():
            if len(folder.stem) == 64 and folder.stem not in there:
                await hibernate.remove(folder)
        for gone in self.known.keys() - there:
            self.known.pop(gone, None)
        for row in rows:
            if row.state in ("running", "paused") and self._wishes_anything(row.labels):
                await self._learn_one(row.id)
        await self.tell()

    async def _learn_one(self, container_id: str) -> None:
        with contextlib.suppress(AgentError):
            found = await self._host.docker.find(container_id)
            if found is None:
                self.known.pop(container_id, None)
                return
            self.known[container_id] = (found, wishes.read(found, self._host.settings.shutdown))
            if (reason := self._again.pop(container_id, "")) and found.running:
                self.begin(container_id, reason)

    def _signalled(self, event: DockerEvent) -> None:
        if wishes.on_shutdown(event.attributes, self._host.settings.shutdown) != wishes.HIBERNATE:
            return
        if event.id not in self.known:  # it was started just now
            self._learn(self._learn_then_stop(event))
        elif self._is_stop(event):
            self.begin(event.id, STOP)

    async def _learn_then_stop(self, event: DockerEvent) -> None:
        await self._learn_one(event.id)
        if event.id in self.known and self._is_stop(event):
            self.begin(event.id, STOP)

    def _is_stop(self, event: DockerEvent) -> bool:
        stop = self.known[event.id][1].stop_signal
        return stop != 0 and number(event.attributes.get("signal", "")) == stop

    async def learned(self) -> None:
        """Wait until what was heard so far is known, for a little while: an agent may just have been started."""
        if self._learning:
            await asyncio.wait(set(self._learning), timeout=LEARN_SECONDS)

    # --- the work ---

    def is_busy(self, container_id: str) -> bool:
        """Whether a move or checkpoint has it."""
        return container_id not in self._work and bool(self._sources.moves.runs_of(container_id))

    async def until_free(self, container_id: str, seconds: float) -> bool:
        """Whether nothing has it any more: what does gets so much time, and then a move is taken back if it may be."""
        if not self.is_busy(container_id):
            return True
        moves = self._sources.moves
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await moves.until_free(container_id)
        if self.is_busy(container_id) and not moves.is_decided(container_id):
            self._sources.call_back(container_id, lambda name: Cancelled(f"{name} has to stay: its host goes down"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKE_BACK_SECONDS):
                    await moves.until_free(container_id)
        return not self.is_busy(container_id)

    def begin(self, container_id: str, reason: str) -> asyncio.Task[bool]:
        """Put it to sleep, unless that is under way; whether it sleeps then."""
        if (task := self._work.get(container_id)) is None:
            task = asyncio.create_task(self._hibernate(container_id, reason), name=f"hibernate {container_id[:12]}")
            self._work[container_id] = task
            task.add_done_callback(lambda done: self._work.pop(container_id, None))
        return task

    async def _hibernate(self, container_id: str, reason: str) -> bool:
        if (taking := self._taking.get(container_id)) is not None:
            await asyncio.wait({taking})
        container, wish = self.known[container_id]
        try:
            slept = await self._sleep(container, wish, reason)
        except ContainerGone:
            return False
        except AgentError as error:
            failure = error
        except Exception as error:
            log.exception("%s could not be hibernated", container.name)
            failure = StepFailed(f"{type(error).__name__}: {error}", hint="a bug: the agent's log has the traceback")
        else:
            log.info("%s sleeps: %d bytes, frozen for %.0f ms", container.name, slept.bytes, slept.frozen_ms)
            figures = {"bytes": str(slept.bytes), "tasks": str(slept.tasks), "frozen_ms": str(slept.frozen_ms)}
            await self._say("hibernated", container, reason=reason, **figures)
            return True
        log.warning("%s can't be hibernated: %s", container.name, failure.message)
        await self._say("hibernate-failed", container, reason=reason, code=failure.code, why=failure.message)
        # what is decided to run elsewhere has ended here but for its memory, which may still be needed there
        if reason == STOP and not self._sources.moves.is_decided(container.id):
            await self.stop_otherwise(container, wish)
        return False

    async def _sleep(self, container: Container, wish: Wishes, reason: str) -> Slept:
        record = {"container_id": container.id}
        run = Run(
            self._host.journal,
            Run.entry(new_migration_id(), Role.SOURCE, container.name, self._host.name, record),
        )
        await self._sources.claim(container, run)
        try:
            return await hibernate.put_to_sleep(self._host, container, wish, reason)
        finally:
            self._sources.unclaim(container.id)

    async def stop_otherwise(self, container: Container, wish: Wishes, seconds: float = FALLBACK_SECONDS) -> None:
        """As Docker would with an ordinary stop signal: ask it, wait, kill it. The one that it has does nothing, and
        dockerd would wait for the whole of a long timeout.
        """
        with contextlib.suppress(AgentError, OSError):
            first = hibernate.first_process(container.id)
            started, end = proc.start_time(first), time.monotonic() + seconds
            os.kill(first, wish.fallback)
            while proc.start_time(first) == started and not proc.is_ending(first):
                if time.monotonic() > end:
                    os.kill(first, signal.SIGKILL)
                    return
                await asyncio.sleep(LOOK_SECONDS)

    # --- what is told ---

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._poked, 4096)
        self._learn(self.tell())

    async def tell(self) -> None:
        """Say what the runtime has done; each once."""
        for path in sorted((ROOT / asleep.SAID).glob("*.json")):
            try:
                said = json.loads(path.read_text())
                path.unlink()
            except (OSError, ValueError):
                continue
            event = Event(
                host=self._host.name,
                at=datetime.fromtimestamp(said["at"], UTC),
                kind=said["kind"],
                container=said["container"],
                container_id=said["container_id"],
                detail=said["detail"],
            )
            log.info("%s: %s %s", event.container, event.kind, event.detail)
            await self.publish(event)

    async def _say(self, kind: str, container: Container, **detail: str) -> None:
        await self.publish(
            Event(
                host=self._host.name,
                at=utc_now(),
                kind=kind,
                container=container.name,
                container_id=container.id,
                detail=detail,
            )
        )


def _make_root() -> None:
    (ROOT / asleep.SAID).mkdir(parents=True, exist_ok=True, mode=0o700)
    ROOT.chmod(0o700)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(ROOT / asleep.POKE, 0o600)
