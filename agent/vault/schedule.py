"""Checkpoints by the clock: a container says by a label how often, and the host takes them into its folder.

    transship.checkpoint.every=6h       30m, 6h, 2d: counted from the last one, or from the container's start

The last one is known from the folder, so a restarted agent goes on where it was; what was missed meanwhile is taken
once. A checkpoint that fails is tried again when its time comes again; the container is as before.
"""

import asyncio
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
LOOK_SECONDS = 5.0

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

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(time.time())
            except AgentError as error:  # dockerd is away: it comes back
                log.debug("scheduled checkpoints: %s", error)

    async def look(self, now: float) -> None:
        """Take what is due, one after the other."""
        running = [found for found in await self._docker.list(all=False) if LABEL in found.labels]
        last = {info.container: info.at.timestamp() for info in self._store.all() if info.host == self._host}
        self._begun = {found.id: self._begun.get(found.id, last.get(found.name, now)) for found in running}
        for found in running:
            every = self._every(found)
            if every is not None and now - max(self._begun[found.id], last.get(found.name, 0)) >= every:
                self._begun[found.id] = now
                try:
                    await self._take(found.id)
                except AgentError as error:
                    log.warning("the scheduled checkpoint of %s failed: %s", found.name, error.message)

    def _every(self, found: Summary) -> float | None:
        every = interval(found.labels[LABEL])
        if every is None and found.id not in self._complained:
            self._complained.add(found.id)
            log.warning("%s: %s=%s is no interval: 30m, 6h or 2d would be", found.name, LABEL, found.labels[LABEL])
        return every
