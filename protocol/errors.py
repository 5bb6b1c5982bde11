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
    NOT_CONVERGING = "not-converging"
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


class Why(StrEnum):
    """What of a container or of a host stands against a move (`reasons` says what each means)."""

    NOT_RUNNING = "not-running"
    PAUSED = "paused"
    TERMINAL = "terminal"
    HOST_NAMESPACE = "host-namespace"
    SHARED_NAMESPACE = "shared-namespace"
    SHAREABLE_IPC = "shareable-ipc"
    PRIVILEGED = "privileged"
    GPU = "gpu"
    DEVICE = "device"
    RUNTIME = "runtime"
    LEGACY_LINKS = "legacy-links"
    MANAGED = "managed"
    LOG_PLUGIN = "log-plugin"
    MOUNT = "mount"
    IMAGE_REMOVED = "image-removed"
    STORAGE_DRIVER = "storage-driver"
    EXEC_SESSION = "exec-session"
    TRACED = "traced"
    FOREIGN_PROCESS = "foreign-process"
    STOPPED_PROCESS = "stopped-process"
    NESTED_NAMESPACE = "nested-namespace"
    IO_URING = "io-uring"
    OPEN_FILE = "open-file"
    RENAMED_FILE = "renamed-file"
    SOCKET = "socket"
    TCP_OPTION = "tcp-option"
    INOTIFY = "inotify"
    UNIX_SOCKET = "unix-socket"
    MULTICAST = "multicast"
    MESSAGE_QUEUE = "message-queue"
    SECCOMP = "seccomp"
    NETWORK_GONE = "network-gone"
    NETWORK_DRIVER = "network-driver"
    NETWORK_ADDITION = "network-addition"
    BOUND_ADDRESS = "bound-address"
    BOUND_INTERFACE = "bound-interface"
    CONNECTIONS = "connections"
    SHARED_VOLUME = "shared-volume"
    VOLUME_DRIVER = "volume-driver"
    VOLUME_OF_HOST = "volume-of-host"
    CRIU_VERSION = "criu-version"
    TOOL_MISSING = "tool-missing"
    NOT_SET_UP = "not-set-up"
    KERNEL_FEATURE = "kernel-feature"
    CPU = "cpu"
    ARCHITECTURE = "architecture"
    CGROUP_VERSION = "cgroup-version"
    USERNS_REMAP = "userns-remap"
    LSM = "lsm"
    CLOCK_SKEW = "clock-skew"
    NO_POSTCOPY = "no-postcopy"
    NO_PRECOPY = "no-precopy"
    NAME_TAKEN = "name-taken"
    ADDRESS_TAKEN = "address-taken"
    ADDRESS_OUTSIDE = "address-outside"
    PORT_TAKEN = "port-taken"
    NETWORK_MISSING = "network-missing"
    NETWORK_DIFFERS = "network-differs"
    VOLUME_CONFLICT = "volume-conflict"
    DEVICE_MISSING = "device-missing"
    CORES = "cores"
    NO_MEMORY = "no-memory"
    NO_SPACE = "no-space"
    LIMIT = "limit"
    CORDONED = "cordoned"


class Reason(WireModel):
    """One thing that stands against a migration, found in the preflight."""

    code: ErrorCode
    why: Why | None = None
    """Finer than the code; none where the error says it all (a host that is offline)."""
    message: str
    hint: str = ""

    @property
    def name(self) -> str:
        """The finest code that it has."""
        return self.why or self.code


class ErrorInfo(WireModel):
    """An error as controllers and peers see it: a code, one sentence, a hint, and what it did to the container."""

    code: ErrorCode
    message: str
    hint: str = ""
    consequence: Consequence = Consequence.UNTOUCHED
    reasons: tuple[Reason, ...] = ()
    detail: tuple[str, ...] = ()  # log lines of CRIU or of a command, newest last
