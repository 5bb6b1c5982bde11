"""The closed list of error codes, and how an error looks on the wire.

A code never changes its meaning. What it means for the container is its class: see `Consequence`.
"""

from enum import StrEnum

from protocol.base import WireModel


class Consequence(StrEnum):
    """What an error did to the container that was to be moved."""

    UNTOUCHED = "untouched"  # refused before anything was done
    TAKEN_BACK = "taken-back"  # begun, undone; the container runs on at the source
    IN_DOUBT = "in-doubt"  # decided, but the peer has not answered yet; asking goes on by itself
    STRANDED = "stranded"  # a step could not be undone; a person is needed


class ErrorCode(StrEnum):
    """Every reason that an agent gives for not doing what it was asked."""

    # untouched
    BAD_COMMAND = "bad-command"
    UNSUPPORTED_VERSION = "unsupported-version"
    EXPIRED = "expired"
    BUSY = "busy"
    TOO_LATE = "too-late"
    NO_SUCH_CONTAINER = "no-such-container"
    NO_SUCH_MIGRATION = "no-such-migration"
    NO_SUCH_EVACUATION = "no-such-evacuation"
    NO_SUCH_CHECKPOINT = "no-such-checkpoint"
    NO_SUCH_HOST = "no-such-host"
    HOST_OFFLINE = "host-offline"
    SAME_HOST = "same-host"
    NOT_RUNNING = "not-running"
    NOT_MIGRATABLE = "not-migratable"
    INCOMPATIBLE = "incompatible"
    CRIU_UNUSABLE = "criu-unusable"
    DOCKER_UNAVAILABLE = "docker-unavailable"
    PEER_UNREACHABLE = "peer-unreachable"
    PEER_NOT_ALLOWED = "peer-not-allowed"
    PEER_REFUSED = "peer-refused"
    NAME_TAKEN = "name-taken"
    ADDRESS_TAKEN = "address-taken"
    PORT_TAKEN = "port-taken"
    NETWORK_MISSING = "network-missing"
    VOLUME_CONFLICT = "volume-conflict"
    NO_SPACE = "no-space"
    NO_MEMORY = "no-memory"
    BLACKOUT_TOO_LONG = "blackout-too-long"
    HOST_CORDONED = "host-cordoned"
    NO_TARGET = "no-target"
    TOO_LITTLE_TIME = "too-little-time"
    # taken back
    COMMAND_FAILED = "command-failed"
    DOCKER_FAILED = "docker-failed"
    TRANSFER_FAILED = "transfer-failed"
    CORRUPT_PART = "corrupt-part"
    FREEZE_FAILED = "freeze-failed"
    DUMP_FAILED = "dump-failed"
    RESTORE_FAILED = "restore-failed"
    STEP_TIMEOUT = "step-timeout"
    CONTAINER_GONE = "container-gone"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    # in doubt, stranded
    IN_DOUBT = "in-doubt"
    STRANDED = "stranded"
    LOST = "lost"
    # found out by a controller itself, never sent by an agent
    BROKER_UNAVAILABLE = "broker-unavailable"
    NO_ANSWER = "no-answer"


class Reason(WireModel):
    """One thing that stands against a migration, found in the preflight."""

    code: ErrorCode
    message: str
    hint: str = ""


class ErrorInfo(WireModel):
    """An error as controllers and peers see it: a code, one sentence, a hint, and what it did to the container."""

    code: ErrorCode
    message: str
    hint: str = ""
    consequence: Consequence = Consequence.UNTOUCHED
    reasons: tuple[Reason, ...] = ()
    detail: tuple[str, ...] = ()  # log lines of CRIU or of a command, newest last
