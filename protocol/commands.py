"""What a controller may ask of a host's agent, and the replies it gets.

Commands go to `topics.command(host)` at QoS 1 with an MQTT 5 response topic and correlation data. A command is
idempotent by its id: sent twice, it is done once, and the second one gets the first one's reply.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from protocol.base import (
    PROTOCOL_VERSION,
    CommandId,
    ContainerRef,
    EvacuationId,
    HostName,
    MigrationId,
    Timestamp,
    WireModel,
)
from protocol.check import ContainerCheck
from protocol.checkpoint import CheckpointId, CheckpointInfo, NativeName, PipeId, StoreRef
from protocol.errors import ErrorInfo
from protocol.evacuation import EvacuationStatus
from protocol.status import MigrationReport


class Strategy(StrEnum):
    """How memory gets across."""

    AUTO = "auto"
    COLD = "cold"  # freeze, dump, stream while dumping, restore
    PRECOPY = "precopy"  # memory goes over in rounds while it runs; what is written since the last one, frozen
    POSTCOPY = "postcopy"  # run at the target at once; memory follows on demand and in the background


class Compress(StrEnum):
    """Whether what a move sends is packed."""

    AUTO = "auto"  # where the link is slower than the processor, by a sample of the memory
    ZSTD = "zstd"
    NONE = "none"


class TcpPolicy(StrEnum):
    """What becomes of established TCP connections."""

    AUTO = "auto"  # as the container's label transship.tcp says, else: keep where every address moves along, or close
    KEEP = "keep"
    CLOSE = "close"
    REFUSE = "refuse"  # no move while there are any


class ExecPolicy(StrEnum):
    """What becomes of a move while a command runs in the container that `docker exec` has started."""

    REFUSE = "refuse"
    WAIT = "wait"  # for its end, at most as long as the source's deadline says


class SourcePolicy(StrEnum):
    """What becomes of the stopped container at the source once the move is done."""

    REMOVE = "remove"
    KEEP = "keep"  # renamed to NAME.moved-<migration>, stopped, restart policy "no"


class _Command(WireModel):
    version: Literal[1] = PROTOCOL_VERSION
    id: CommandId
    """Chosen by the controller; the key of idempotence."""
    expires_at: Timestamp | None = None
    """Not begun after this moment (beside MQTT's own message expiry)."""


class Migrate(_Command):
    """Move one running container from this host to another."""

    kind: Literal["migrate"] = "migrate"
    container: ContainerRef
    to: HostName
    strategy: Strategy = Strategy.AUTO
    tcp: TcpPolicy = TcpPolicy.AUTO
    execs: ExecPolicy = ExecPolicy.REFUSE
    source: SourcePolicy = SourcePolicy.REMOVE
    max_blackout_ms: int | None = Field(default=None, gt=0, le=86_400_000)
    allow_postcopy: bool = False
    """Whether `auto` may choose it, and pre-copy end in it: a source that dies for good in its middle takes the
    container with it.
    """
    throttle: int = Field(default=0, ge=0, le=99)
    """By how many per cent pre-copy may slow the container down, where it writes faster than the link carries."""
    bandwidth: int | None = Field(default=None, gt=0)
    """Bytes a second at most, for what is sent while the container runs."""
    compress: Compress = Compress.AUTO
    rehearse: bool = False
    """Do all of it up to the restored copy, which never runs, and take it all back: would it work, and how long?"""


class Check(_Command):
    """Say whether a container could be moved, and what stands against it, all of it; nothing is touched."""

    kind: Literal["check"] = "check"
    container: ContainerRef | None = None
    """None: every one that runs here."""
    to: HostName | None = None
    """None: to each host that this one may give containers to."""
    tcp: TcpPolicy = TcpPolicy.AUTO


class Cancel(_Command):
    """Take a migration back; refused as too late once it is decided."""

    kind: Literal["cancel"] = "cancel"
    migration: MigrationId


class Limit(_Command):
    """Change how many bytes a second a migration may send while its container runs, or all of this host together."""

    kind: Literal["limit"] = "limit"
    migration: MigrationId | None = None
    """None: the host, until its agent is started again."""
    bandwidth: int | None = Field(default=None, gt=0)
    """None: as fast as it goes."""


class Resolve(_Command):
    """A person's word on a migration in doubt, for a peer that never comes back (handover.md, rule 8)."""

    kind: Literal["resolve"] = "resolve"
    migration: MigrationId
    decision: Literal["commit", "abort"]


class ListMigrations(_Command):
    """The open migrations in this host's journal."""

    kind: Literal["list-migrations"] = "list-migrations"


class Compression(StrEnum):
    """How an archive is packed."""

    ZSTD = "zstd"
    GZIP = "gzip"
    NONE = "none"


class Checkpoint(_Command):
    """Take a checkpoint of one running container: into a store, or through a pipe that a controller on the host made.

    The container goes on, or is stopped once the archive is complete and on the disk.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    container: ContainerRef
    store: StoreRef = ""
    pipe: PipeId | None = None
    """Goes before the store."""
    leave_running: bool = True
    tcp: TcpPolicy = TcpPolicy.AUTO
    execs: ExecPolicy = ExecPolicy.REFUSE
    compression: Compression = Compression.ZSTD
    with_image: bool = False
    """Put the image into the archive too, for hosts that have it not."""


class Restore(_Command):
    """Make a container from a checkpoint: on this host, or from an archive on this host on another one."""

    kind: Literal["restore"] = "restore"
    checkpoint: CheckpointId | None = None
    """In the host's folder."""
    pipe: PipeId | None = None
    store: StoreRef = ""
    """The image in a registry. One of the three is said."""
    on: HostName | None = None
    """Where it is to run; this host if it is not said."""
    name: ContainerRef | None = None
    """A clone of that name, with addresses, published ports and volumes of its own."""
    tcp: TcpPolicy = TcpPolicy.AUTO


class ListCheckpoints(_Command):
    """What is in this host's folder."""

    kind: Literal["list-checkpoints"] = "list-checkpoints"


class RemoveCheckpoint(_Command):
    """Remove one from this host's folder; a pinned one only with `force`."""

    kind: Literal["remove-checkpoint"] = "remove-checkpoint"
    checkpoint: CheckpointId
    force: bool = False


class PinCheckpoint(_Command):
    """Keep one whatever the retention says, or no longer."""

    kind: Literal["pin-checkpoint"] = "pin-checkpoint"
    checkpoint: CheckpointId
    pinned: bool = True


class NativeCreate(_Command):
    """Have dockerd take a checkpoint of its own of a running container (`engine: native`); it is stopped by that."""

    kind: Literal["native-create"] = "native-create"
    container: ContainerRef
    name: NativeName
    leave_running: bool = False


class NativeList(_Command):
    """The checkpoints of its own that dockerd has of a container."""

    kind: Literal["native-list"] = "native-list"
    container: ContainerRef


class NativeRemove(_Command):
    """Remove one of them."""

    kind: Literal["native-remove"] = "native-remove"
    container: ContainerRef
    name: NativeName


class NativeStart(_Command):
    """Start a stopped container from one, here or on another host, and prove that it was a restore."""

    kind: Literal["native-start"] = "native-start"
    container: ContainerRef
    name: NativeName
    on: HostName | None = None
    """Where a container like it is made and started; this host, and this container, if it is not said."""


class _Leaving(_Command):
    """What both ways of moving many have in common."""

    deadline_s: float | None = Field(default=None, gt=0, le=604_800)
    """When this time is over nothing more is begun, and what is not decided is taken back."""
    parallel: int | None = Field(default=None, gt=0, le=64)
    """Moves at once; never more than the host's own limit, which it is by default."""
    plan: bool = False
    """Only say what would be done."""


class Evacuate(_Leaving):
    """Cordon this host, and move all of its containers to others that can take them."""

    kind: Literal["evacuate"] = "evacuate"
    to: tuple[HostName, ...] = ()
    """Only to these; any that there is, if none is said."""


class Return(_Leaving):
    """Give back the containers that an evacuation of another host has brought to this one."""

    kind: Literal["return"] = "return"
    to: HostName


class CancelEvacuation(_Command):
    """Begin nothing more of it, and take back what is not decided. The host stays cordoned."""

    kind: Literal["cancel-evacuation"] = "cancel-evacuation"
    evacuation: EvacuationId


class Cordon(_Command):
    """Take no containers any more, or take them again."""

    kind: Literal["cordon"] = "cordon"
    cordoned: bool = True


class ShutdownNotice(_Command):
    """This host goes down in so many seconds (a notice of the cloud, say): bring its containers to safety by then."""

    kind: Literal["shutdown-notice"] = "shutdown-notice"
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 90.0
    called_off: bool = False
    """It stays up after all: what was hibernated for a notice is started again."""


class Ping(_Command):
    """Is the agent there, and which version is it?"""

    kind: Literal["ping"] = "ping"


_All = (
    Migrate
    | Check
    | Cancel
    | Limit
    | Resolve
    | ListMigrations
    | Checkpoint
    | Restore
    | ListCheckpoints
    | RemoveCheckpoint
    | PinCheckpoint
    | NativeCreate
    | NativeList
    | NativeRemove
    | NativeStart
    | Evacuate
    | Return
    | CancelEvacuation
    | Cordon
    | ShutdownNotice
    | Ping
)
Command = Annotated[_All, Field(discriminator="kind")]
COMMAND: TypeAdapter[_All] = TypeAdapter(Command)


class ReplyKind(StrEnum):
    """A long command gets two replies: `accepted`, then `finished` or `failed`; a short one only the last."""

    ACCEPTED = "accepted"
    FINISHED = "finished"
    FAILED = "failed"


class OpenMigration(WireModel):
    """A line of the journal: a migration that has not ended."""

    id: MigrationId
    role: Literal["source", "target"]
    container: str
    peer: HostName
    phase: str
    since: Timestamp
    doubt: str = ""
    """Why it needs a person, if it does, and what each answer risks."""


class Reply(WireModel):
    """An agent's answer, sent to the command's response topic with its correlation data."""

    version: Literal[1] = PROTOCOL_VERSION
    kind: ReplyKind
    host: HostName
    command: CommandId | None
    """None where the command could not be read at all."""
    at: Timestamp
    migration: MigrationId | None = None
    error: ErrorInfo | None = None
    report: MigrationReport | None = None
    migrations: tuple[OpenMigration, ...] | None = None
    checkpoint: CheckpointInfo | None = None
    """The one that was taken."""
    checkpoints: tuple[CheckpointInfo, ...] | None = None
    native: tuple[str, ...] | None = None
    """Names of Docker's own checkpoints, as listed."""
    checks: tuple[ContainerCheck, ...] | None = None
    evacuation: EvacuationStatus | None = None
    """The plan, or what came of it."""
    notes: tuple[str, ...] = ()
    """Of a restore: what is not exactly as it was, each a sentence."""
    agent_version: str | None = None
