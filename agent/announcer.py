"""Everything the agent says by itself, to the broker: its host, its containers, its migrations, its decisions.

Also listens: what the other hosts say of themselves, so that a command for an unknown or offline target is refused.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime

from agent import __version__
from agent.base.config import Settings
from agent.checkpoint import proc
from agent.doors.mqtt import Broker
from agent.migration import cordon
from agent.migration.report import status
from agent.migration.run import Run
from protocol import topics
from protocol.base import utc_now
from protocol.errors import ErrorInfo
from protocol.evacuation import EvacuationState, EvacuationStatus
from protocol.peer import DecisionKind
from protocol.status import ENDED, ContainerStatus, DecisionNotice, Engine, Event, HostStatus

log = logging.getLogger("agent.announcer")

KEEP_STATUS_SECONDS = 24 * 3600
"""How long an ended migration's retained status is worth keeping; then the broker drops it."""

LOAD_SECONDS = 10.0
"""How often it looks at its own load; less often it is known too late, and a message costs every host a look."""
LOAD_STEP = 0.05
"""What has changed by less, of all processors or of all memory, is not worth a message."""


class Announcer:
    """The agent's voice, and its list of the others."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._sequences: dict[str, int] = {}
        self._hosts: dict[str, HostStatus] = {}
        self._containers: dict[str, ContainerStatus] = {}
        self._engine: Engine | None = None
        self._migrations: set[str] = set()
        self._cpu_busy: float | None = None
        self._load_said: tuple[float, int] = (0.0, 0)
        self._certificates: tuple[datetime | None, str] = (None, "")
        self._listeners: list[Callable[[Run], None]] = []
        self._hosts_heard: list[Callable[[], None]] = []
        self._ends_heard: list[Callable[[Run], Awaitable[None]]] = []
        self._moves_heard: list[Callable[[Run], None]] = []

    def on_heard(self, hear: Callable[[], None]) -> None:
        """Have it told that a host has said something of itself."""
        self._hosts_heard.append(hear)

    def on_end(self, hear: Callable[[Run], Awaitable[None]]) -> None:
        """Have each end of a migration told that leaves this host; it may come twice."""
        self._ends_heard.append(hear)

    def on_move(self, hear: Callable[[Run], None]) -> None:
        """Have it told that a migration from here has begun, or has ended."""
        self._moves_heard.append(hear)

    # --- the other hosts ---

    async def heard(self, host: HostStatus) -> None:
        self._hosts[host.host] = host
        for hear in self._hosts_heard:
            hear()

    def statuses(self) -> list[HostStatus]:
        """Every host that has ever said something, this one too."""
        return list(self._hosts.values())

    def status(self, host: str) -> HostStatus | None:
        return self._hosts.get(host)

    def url(self, host: str) -> str:
        found = self._hosts.get(host)
        return found.peer_url if found else ""

    # --- this host ---

    def _publish_host(self) -> None:
        link = self._settings.peer
        free = proc.memory_available()
        self._load_said = (self._cpu_busy or 0.0, free)
        self._broker.publish_retained(
            topics.host_status(self._settings.host),
            HostStatus(
                host=self._settings.host,
                online=True,
                at=utc_now(),
                agent_version=__version__,
                peer_url=f"https://{link.address or self._settings.host}:{link.port}",
                engine=self._engine,
                kernel=os.uname().release,
                machine=os.uname().machine,
                cpus=os.cpu_count() or 0,
                memory_bytes=proc.memory_total(),
                memory_free_bytes=free,
                cpu_busy=self._cpu_busy,
                running=sum(one.state == "running" for one in self._containers.values()),
                migrations=len(self._migrations),
                migrations_limit=self._settings.limits.migrations,
                memory_reserve_bytes=self._settings.limits.memory_reserve_bytes,
                certificates_until=self._certificates[0],
                certificates_warning=self._certificates[1],
                cordoned=cordon.find(self._settings.state_dir) is not None,
            ),
        )

    async def watch_load(self) -> None:
        """Say anew what this host is, whenever its load has become another one."""
        memory = proc.memory_total() or 1
        busy, ticks = proc.cpu_times()
        while True:
            await asyncio.sleep(LOAD_SECONDS)
            busy_before, ticks_before = busy, ticks
            busy, ticks = proc.cpu_times()
            self._cpu_busy = min(1.0, max(0.0, (busy - busy_before) / max(1, ticks - ticks_before)))
            said_busy, said_free = self._load_said
            moved = max(abs(self._cpu_busy - said_busy), abs(proc.memory_available() - said_free) / memory)
            if moved >= LOAD_STEP:
                self._publish_host()

    async def engine_changed(self, engine: Engine | None) -> None:
        """None: dockerd does not answer."""
        self._engine = engine
        self._publish_host()

    async def certificates(self, until: datetime | None, warning: str) -> None:
        """When they end, and what is to be said about that."""
        self._certificates = (until, warning)
        self._publish_host()

    async def publish_container(self, container: ContainerStatus) -> None:
        before = self._containers.get(container.id)
        self._containers[container.id] = container
        self._broker.publish_retained(topics.container_status(self._settings.host, container.id), container)
        if before is None or before.state != container.state:
            self._publish_host()

    async def remove_container(self, container_id: str) -> None:
        self._containers.pop(container_id, None)
        self._broker.clear(topics.container_status(self._settings.host, container_id))
        self._publish_host()

    def states(self) -> Counter[str]:
        """How many containers are in each state."""
        return Counter(one.state for one in self._containers.values())

    async def listed(self) -> None:
        """An agent before this one may have left containers at the broker that are gone by now."""
        host = self._settings.host
        self._broker.set_retained(
            topics.container_status(host, "+"),
            {topics.container_status(host, one.id): one for one in self._containers.values()},
        )

    async def publish_event(self, event: Event) -> None:
        self._broker.publish(topics.events(self._settings.host), event)

    # --- evacuations ---

    def cordoned(self) -> None:
        self._publish_host()

    async def evacuation(self, status: EvacuationStatus) -> None:
        expiry = None if status.state is EvacuationState.RUNNING else KEEP_STATUS_SECONDS
        self._broker.publish_retained(topics.evacuation(self._settings.host), status, expiry=expiry)

    # --- migrations ---

    async def changed(self, run: Run, error: ErrorInfo | None) -> None:
        # from the clock, so that it goes up over a restart of the agent too
        sequence = self._sequences[run.id] = max(self._sequences.get(run.id, 0) + 1, time.time_ns() // 1_000_000)
        ended = run.phase in ENDED
        self._broker.publish_retained(
            topics.migration_status(run.id, self._settings.host),
            status(run, self._settings.host, sequence, error),
            expiry=KEEP_STATUS_SECONDS if ended else None,
        )
        before = len(self._migrations)
        (self._migrations.discard if ended else self._migrations.add)(run.id)
        if len(self._migrations) != before:
            self._publish_host()
            for hear_move in self._moves_heard:
                hear_move(run)
        for tell in self._listeners:
            tell(run)
        if ended:
            for hear in self._ends_heard:
                await hear(run)

    def on_migration(self, tell: Callable[[Run], None]) -> None:
        """Have each change of a migration told that leaves this host."""
        self._listeners.append(tell)

    async def decided(self, run: Run, decision: DecisionKind) -> None:
        if decision is DecisionKind.PENDING:
            return
        notice = DecisionNotice.model_validate(
            {
                "migration": run.id,
                "source": self._settings.host,
                "target": run.peer,
                "decision": decision,
                "at": utc_now(),
            }
        )
        topic = topics.decision(run.id, self._settings.host)
        self._broker.publish_retained(topic, notice, expiry=KEEP_STATUS_SECONDS)
