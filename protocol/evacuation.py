"""What a host says of its evacuation: retained, one for each host, and in the replies to the commands that ask for it.

A `return` is one too: each host that has containers of another one gives them back.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from protocol.base import PROTOCOL_VERSION, ContainerId, EvacuationId, HostName, MigrationId, Timestamp, WireModel
from protocol.errors import ErrorInfo, Reason


class EvacuationKind(StrEnum):
    """Whose wish it is."""

    EVACUATE = "evacuate"
    RETURN = "return"


class EvacuationState(StrEnum):
    """How far it is."""

    PLANNED = "planned"  # of a plan alone: nothing was begun
    RUNNING = "running"
    DONE = "done"  # nothing more will be tried; what was left behind is said
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # by a reboot in its middle


class EvacueeState(StrEnum):
    """What becomes of one container."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    LEFT = "left"  # it could not be moved; it runs where it was, unless its error says otherwise
    STAYS = "stays"  # its label says so


class NotThere(WireModel):
    """Why a host was not chosen."""

    host: HostName
    reasons: tuple[Reason, ...]


class Evacuee(WireModel):
    """One container, in the order in which they go."""

    container: str
    container_id: ContainerId
    state: EvacueeState
    to: HostName | None = None
    why: str = ""
    """Why there, or why it stays."""
    not_there: tuple[NotThere, ...] = ()
    priority: int = 0
    memory_bytes: int = 0
    predicted_s: float | None = None
    """When it is expected to be there, in seconds since this was planned."""
    migration: MigrationId | None = None
    """The last one of them; an ordinary one, with a status of its own."""
    error: ErrorInfo | None = None
    """Why it was left behind."""
    blackout_ms: float | None = None
    total_ms: float | None = None
    notes: tuple[str, ...] = ()


class EvacuationStatus(WireModel):
    """Retained at `topics.evacuation(host)`: the one that goes on, or the last one."""

    version: Literal[1] = PROTOCOL_VERSION
    id: EvacuationId
    kind: EvacuationKind
    host: HostName
    """That is left."""
    state: EvacuationState
    sequence: int = Field(ge=0)
    """Goes up with each message; a lower one is stale."""
    started_at: Timestamp
    at: Timestamp
    deadline: Timestamp | None = None
    parallel: int = 1
    error: ErrorInfo | None = None
    """Why it ended before its time, where it did: what was not moved by then was not tried."""
    containers: tuple[Evacuee, ...] = ()
