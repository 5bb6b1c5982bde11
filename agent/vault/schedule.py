"""Checkpoints by the clock: a container says by a label how often, and the host takes them into its folder.

    transship.checkpoint.every=6h       30m, 6h, 2d: counted from the last one, or from the container's start

The last one is known from the folder, so a restarted agent goes on where it was; what was missed meanwhile is taken
once. A checkpoint that fails is tried again when its time comes again; the container is as before.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable

from agent.base.errors import AgentError
from agent.doors.docker import Docker
from agent.doors.docker_model import Summary
from agent.vault.store import Store

log = logging.getLogger("agent.vault")

LABEL = "transship.checkpoint.every"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_WAIT_SECONDS = 3600.0
"""The wall clock may be set while one waits by the other."""

Take = Callable[[str], Awaitable[None]]
"""Takes a checkpoint of the container of that id, to its end."""


def interval(label: str) -> float | None:
    """Seconds; None for what is no interval."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", label.strip())
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    return float(seconds) or None


class Schedule:
    """When each container's turn is. Times are of the wall clock: checkpoints outlive the host's uptime."""

    def __init__(self, docker: Docker, store: Store, take: Take, host: str) -> None:
        self._docker = docker
        self._store = store
        self._take = take
        self._host = host
        self._begun: dict[str, float] = {}
        """By container: when its last one was begun, or when it was first seen."""
        self._complained: set[str] = set()
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """A container was started, has ended, or has another name: look anew which is the next."""
        self._changed.set()

    async def run(self) -> None:
        """For ever: from one that is due to the next, or till something changes."""
        while True:
            self._changed.clear()
            wait = LONGEST_WAIT_SECONDS
            try:
                due = await self.look(time.time())
                if due is not None:
                    wait = min(wait, max(0.0, due - time.time()))
            except AgentError as error:  # dockerd is away; when it is back that is a change
                log.debug("scheduled checkpoints: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def look(self, now: float) -> float | None:
        """Take what is due, one after the other; when the next one is, None if no container wants any."""
        running = [found for found in await self._docker.list(all=False) if LABEL in found.labels]
        if not running:
            self._begun.clear()
            return None
        last = {info.container: info.at.timestamp() for info in self._store.all() if info.host == self._host}
        self._begun = {found.id: self._begun.get(found.id, last.get(found.name, now)) for found in running}
        due: list[float] = []
        for found in running:
            every = self._every(found)
            if every is None:
                continue
            since = max(self._begun[found.id], last.get(found.name, 0))
            due.append(every + (since if now - since < every else now))
            if now - since >= every:
                self._begun[found.id] = now
                try:
                    await self._take(found.id)
                except AgentError as error:
                    log.warning("the scheduled checkpoint of %s failed: %s", found.name, error.message)
        return min(due, default=None)

    def _every(self, found: Summary) -> float | None:
        every = interval(found.labels[LABEL])
        if every is None and found.id not in self._complained:
            self._complained.add(found.id)
            log.warning("%s: %s=%s is no interval: 30m, 6h or 2d would be", found.name, LABEL, found.labels[LABEL])
        return every
