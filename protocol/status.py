"""What agents say by themselves: host, containers, migrations (all retained), and events."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from protocol.base import PROTOCOL_VERSION, ContainerId, HostName, MigrationId, Timestamp, WireModel
from protocol.check import Outlook
from protocol.errors import ErrorInfo


class Phase(StrEnum):
    """Where a migration is; the words of handover.md, used by both roles."""

    PLANNED = "planned"
    RESERVED = "reserved"
    COPYING = "copying"
    STAGED = "staged"
    FROZEN = "frozen"
    RESTORING = "restoring"
    PREPARED = "prepared"
    COMMITTED = "committed"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    ROLLED_BACK = "rolled-back"
    DISCARDED = "discarded"
    STRANDED = "stranded"


ENDED = frozenset({Phase.DONE, Phase.REFUSED, Phase.ROLLED_BACK, Phase.DISCARDED, Phase.STRANDED})


class Engine(WireModel):
    """The container engine of a host, and the tools that checkpoint with it."""

    docker: str
    """Docker's version, empty while dockerd does not answer."""
    api: str = ""
    runc: str = ""
    criu: str = ""
    """CRIU's version, empty where there is none."""
    criu_features: tuple[str, ...] = ()
    """What CRIU can do with this kernel, as `criu check --feature` calls it: mem_dirty_track, uffd-noncoop."""
    storage_driver: str = ""
    image_store: Literal["graphdriver", "containerd", ""] = ""
    cgroup_version: Literal[1, 2] = 2
    userns_remap: bool = False
    apparmor: bool = False
    """Whether its containers are confined by AppArmor."""
    selinux: bool = False
    """The same by SELinux."""
    runtime_registered: bool = False
    """Whether dockerd knows the runtime `transship`."""


class HostStatus(WireModel):
    """Retained at `topics.host_status(host)`; the last will says `online: false`."""

    version: Literal[1] = PROTOCOL_VERSION
    host: HostName
    online: bool
    at: Timestamp | None = None
    agent_version: str = ""
    protocols: tuple[int, ...] = (PROTOCOL_VERSION,)
    peer_url: str = ""
    """Where peers reach this agent: https://NAME-OR-ADDRESS:PORT."""
    engine: Engine | None = None
    kernel: str = ""
    machine: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cpu_busy: float | None = Field(default=None, ge=0, le=1)
    """The share of its processors that was busy lately; None until it has been measured."""
    running: int = 0
    migrations: int = 0
    migrations_limit: int = 4
    """As many may be under way at the same time."""
    memory_reserve_bytes: int = 0
    """Of what is free, left alone when it takes a container."""
    cordoned: bool = False
    """It takes no containers: it is to be empty (docs/evacuate.md)."""
    certificates_until: Timestamp | None = None
    """When the first of the certificates ends that it needs for its peers and the broker."""
    certificates_warning: str = ""
    """What is wrong with them, or will be soon."""


class ContainerStatus(WireModel):
    """Retained at `topics.container_status(host, id)`; cleared when the container is removed."""

    version: Literal[1] = PROTOCOL_VERSION
    host: HostName
    id: ContainerId
    name: str
    image: str
    state: str
    """Docker's word: created, running, paused, restarting, removing, exited, dead."""
    health: str = ""
    labels: dict[str, str] = {}
    started_at: Timestamp | None = None
    """Of its last start, as long as it runs: another one means that it was restarted."""
    networks: dict[str, tuple[str, ...]] = {}
    """Those that it is on, with its addresses there while it runs."""
    volumes: tuple[str, ...] = ()
    """Those that are mounted in it."""
    migration: MigrationId | None = None
    """By which it is leaving just now."""
    home: HostName | None = None
    """Where it returns to: an evacuation of that host has brought it here."""
    outlook: Outlook | None = None
    """Whether it could be moved, and where to; None until that is known, and of one that does not run."""


class PhaseTime(WireModel):
    """When a phase was entered, in milliseconds since the migration began."""

    phase: Phase
    at_ms: float


class Part(WireModel):
    """Bytes of one thing that was carried over, and whether the container was frozen meanwhile."""

    name: str
    bytes: int
    frozen: bool
    ms: float


class Round(WireModel):
    """One round of pre-copy: what was sent while the container ran, and what was left to send after it."""

    number: int
    bytes: int
    """Of memory."""
    file_bytes: int
    ms: float
    frozen_ms: float
    """For so long CRIU held the tasks, to take their memory."""
    left_bytes: int
    """Of memory: written since, or not to be had in rounds."""
    rate: float
    """Bytes a second that a dump would go at."""
    predicted_ms: float
    """The blackout, if it were frozen now."""
    throttled: int = 0
    """By how many per cent it was slowed down meanwhile."""


class MigrationReport(WireModel):
    """The last word on a migration."""

    phases: tuple[PhaseTime, ...]
    target_phases: tuple[PhaseTime, ...] = ()
    """On the target's own clock: milliseconds since it took the offer."""
    parts: tuple[Part, ...] = ()
    blackout_ms: float | None = None
    """From the freeze to the target's word that the tasks run; None where it never froze."""
    predicted_blackout_ms: float | None = None
    """What was expected before it began."""
    held_ms: float | None = None
    """In a rehearsal: how long the container was frozen, for the dump."""
    rehearsed_ms: float | None = None
    """In a rehearsal: from the freeze until the copy was restored and proved, which is what a blackout is made of."""
    total_ms: float = 0
    freeze_ms: float | None = None
    dump_ms: float | None = None
    restore_ms: float | None = None
    network_ms: float | None = None
    """At the target, after the decision: the network unlocked, the addresses announced."""
    pages_ms: float | None = None
    """In post-copy, from when it ran until the last page was across."""
    wire_bytes: int = 0
    """Sent to the target, as compressed as it went, without what TLS and HTTP add."""
    memory_bytes: int = 0
    """Memory that was sent while the container ran, here or there; before it was compressed, as the three below."""
    frozen_memory_bytes: int = 0
    file_bytes: int = 0
    """Files, image layers and logs."""
    frozen_file_bytes: int = 0
    rounds: tuple[Round, ...] = ()
    """Of pre-copy."""
    compression: str = ""
    """Whether it was compressed, and why."""
    cpu_s: float = 0
    """Of the source's agent and the commands that it ran meanwhile, for other migrations too."""
    target_cpu_s: float = 0
    """The same of the target's, until it ran there."""
    strategy: str = ""
    reason: str = ""
    tcp: str = ""
    notes: tuple[str, ...] = ()
    """What is not exactly as before, each a sentence."""


class MigrationStatus(WireModel):
    """Retained at `topics.migration_status(id)`, published by the source."""

    version: Literal[1] = PROTOCOL_VERSION
    id: MigrationId
    container: str
    container_id: ContainerId
    """Of the container at the source; the target's copy has an id of its own."""
    source: HostName
    target: HostName
    phase: Phase
    sequence: int = Field(ge=0)
    """Goes up with each message; a lower one is stale."""
    started_at: Timestamp
    at: Timestamp
    rehearsal: bool = False
    """It ends as `rolled-back` without an error, and the container has never left."""
    strategy: str = ""
    part: str = ""
    """What is being sent just now."""
    rounds: tuple[Round, ...] = ()
    """Of pre-copy, so far."""
    bytes_sent: int = 0
    bytes_total: int | None = None
    """An estimate that grows better; None before anything is known."""
    rate: float = 0
    """Bytes a second, over about the last second."""
    bandwidth: int | None = None
    """What it may be at most while the container runs, if this migration has a limit of its own."""
    eta_s: float | None = None
    error: ErrorInfo | None = None
    report: MigrationReport | None = None


class DecisionNotice(WireModel):
    """Retained at `topics.decision(id)`: the source's one decision, the second way for a target to learn it."""

    version: Literal[1] = PROTOCOL_VERSION
    migration: MigrationId
    source: HostName
    target: HostName
    decision: Literal["commit", "abort"]
    at: Timestamp


class Event(WireModel):
    """Something that happened, not retained, at `topics.events(host)`."""

    version: Literal[1] = PROTOCOL_VERSION
    host: HostName
    at: Timestamp
    kind: str
    """For containers Docker's own action (start, die, rename, ...); agent-started, migration-ended, ..."""
    container: str = ""
    container_id: str = ""
    migration: MigrationId | None = None
    detail: dict[str, str] = {}
