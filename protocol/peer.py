"""What two agents say to each other over the peer link (HTTPS with mutual TLS 1.3).

    PUT    /v1/migrations/ID/probe            any bytes, for a moment -> Probed
    POST   /v1/migrations/ID/check            Question: offers that are not made -> Checked
    POST   /v1/migrations/ID/offer            Offer -> Answer
    PUT    /v1/migrations/ID/layers           `docker save` tarball of the missing image layers
    POST   /v1/migrations/ID/create           container created, with what it needs around it -> Created
    PUT    /v1/migrations/ID/log              tarball: the log files so far, laid down before the start
    POST   /v1/migrations/ID/stage            start called: root mounted, the runtime waits -> Staged
    PUT    /v1/migrations/ID/files/NAME       tarball: a pass of the writable layer (root:PASS), of a volume
                                              (volume:NAME:PASS) or of a bind mount (bind:NUMBER-IN-OFFER:PASS);
                                              or the program of --init (init), as it is
    PUT    /v1/migrations/ID/printed          frames: what was printed since the log files were sent
    PUT    /v1/migrations/ID/images           tarball of CRIU image segments, sent while CRIU still writes
    PUT    /v1/migrations/ID/rounds/NUMBER    the same of a round of pre-copy, from 1 on, while the container runs
    POST   /v1/migrations/ID/follow           after those: its memory will follow over the page channel after all
    POST   /v1/migrations/ID/native           NativeOffer: what is to start there from Docker's own checkpoint
    PUT    /v1/migrations/ID/native           tarball: that checkpoint and the writable layer; answered when it runs
    POST   /v1/migrations/ID/alive            the source is still at it: the target's lease before `prepared` goes on
    POST   /v1/migrations/ID/prepare          Manifest -> Prepared; no manifest, no restore
    POST   /v1/migrations/ID/go               Go -> Running: the decision was commit
    GET    /v1/migrations/ID/pages            WebSocket, post-copy: bytes of the page channel, both ways; made again
                                              whenever it breaks
    POST   /v1/migrations/ID/arrived          whether all memory is there -> Arrived; takes its time while it is not
    POST   /v1/migrations/ID/forget           the source is done with it
    DELETE /v1/migrations/ID                  discard; idempotent
    GET    /v1/migrations/ID/decision         asked by the target, answered by the source -> Decision

Errors come back as `protocol.errors.ErrorInfo` with an HTTP status of 4xx or 5xx.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from protocol.base import PROTOCOL_VERSION, ContainerId, HostName, MigrationId, Timestamp, WireModel
from protocol.bodies import Create, Interface, NetworkCreate
from protocol.checkpoint import NativeName
from protocol.commands import SourcePolicy, TcpPolicy
from protocol.errors import Reason
from protocol.status import Engine, PhaseTime

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of bytes, or of things: what is reserved by it can only be taken, never given."""
Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
"""SHA-256, or empty."""
Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=16384)]
ImageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class ImageRef(WireModel):
    """An image by what it is, not by what it is called."""

    name: str
    """As the container's configuration has it; may be an id."""
    id: str
    """The engine's id of it: sha256:... (of the configuration, or of the manifest in the containerd image store)."""
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers, base first; the same in both image stores."""
    config: dict[str, JsonValue] = {}
    """Command, environment and the like of the image: two images with equal layers may differ here."""
    tags: tuple[str, ...] = ()
    size: Count = 0


class Volume(WireModel):
    """A mount of the container whose content goes along, or must be there."""

    kind: Literal["volume", "bind"]
    name: str
    """The volume's name, or for a bind mount the path on the host."""
    destination: str
    driver: str = "local"
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    shared: bool = False
    """Every host with its driver has it, as that says (scope `global`): it is mounted there, and not copied."""
    anonymous: bool = False
    """Made by Docker for this container alone: it gets another name on the target, and goes with the container."""
    read_only: bool = False
    copyable: bool = False
    """Of a bind mount: it is a folder, whose content can be sent."""
    size: Count = 0


class Network(WireModel):
    """A network that the container is attached to, and how it may be made again."""

    name: str
    driver: str
    create: NetworkCreate = {}
    """Body of POST /networks/create that makes the like of it; empty for bridge, host, none."""
    addresses: tuple[Interface, ...] = ()
    """Of the container, with prefix length, IPv4 and IPv6."""
    mac: str = ""


class Listening(WireModel):
    """A port of the host that a container on the host's network holds, with TCP or UDP."""

    protocol: Literal["tcp", "udp"]
    address: str
    """0.0.0.0 or :: for all of them."""
    port: int = Field(ge=1, le=65535)


class NativeOffer(WireModel):
    """A stopped container that is to go on elsewhere from a checkpoint of Docker's own."""

    version: Literal[1] = PROTOCOL_VERSION
    migration: MigrationId
    container: str
    checkpoint: NativeName
    create: Create
    """Body of POST /containers/create, without runtime and restart policy."""
    restart_policy: dict[str, JsonValue]
    """Set once it runs."""
    image: ImageRef


class Probed(WireModel):
    """What there is to know before a strategy is chosen."""

    rate: float = Field(gt=0)
    """Bytes a second of the link, as its receiver saw them come."""
    against_postcopy: str = ""
    """Why that can't be had there."""


class Offer(WireModel):
    """What the source wants to hand over: enough for the target to say every reason against it at once."""

    version: Literal[1] = PROTOCOL_VERSION
    migration: MigrationId
    source: HostName
    target: HostName
    container: str
    container_id: ContainerId
    create: Create
    """Body of POST /containers/create, without runtime and restart policy."""
    restart_policy: dict[str, JsonValue]
    """Set on the target once it runs."""
    image: ImageRef
    volumes: tuple[Volume, ...] = ()
    networks: tuple[Network, ...] = ()
    pinned: dict[str, tuple[str, ...]] = {}
    """By network, the wishes for addresses in `create` that the user has not made: they may be left out."""
    listening: tuple[Listening, ...] = ()
    """On the host's network (`--network host`): what has to be free on the target."""
    init: Digest = ""
    """SHA-256 of the program that --init has put into it; empty if there is none."""
    tcp: TcpPolicy
    """Never `auto`: the source has resolved it."""
    memory_bytes: Count
    """Resident memory now; the target reserves room for the images of it."""
    files_bytes: Count
    tasks: Count
    engine: Engine
    kernel: str
    machine: str
    cpu: Base64 = ""
    """What the source's processor can do: the image that `criu cpuinfo dump` makes."""
    sent_at: Timestamp | None = None
    """By the source's clock."""
    after: SourcePolicy = SourcePolicy.REMOVE
    home: HostName | None = None
    """Where it returns to, if an evacuation has brought it."""
    rehearsal: bool = False
    """The copy is to be thrown away: another name, no network, and no `go`."""
    lazy: bool = False
    """Memory follows over the page channel when the copy runs (post-copy)."""
    rounds: bool = False
    """Memory comes in rounds before the freeze (pre-copy)."""


class Question(WireModel):
    """Containers that might be offered: what would be said of them?"""

    offers: Annotated[tuple[Offer, ...], Field(max_length=100)]


class Against(WireModel):
    """What a host has against one of them."""

    reasons: tuple[Reason, ...] = ()
    postcopy: tuple[Reason, ...] = ()
    """Against that strategy alone."""
    precopy: tuple[Reason, ...] = ()
    """Against that one alone, whose images need more room."""


class Checked(WireModel):
    """In the order of the offers; nothing was reserved."""

    answers: tuple[Against, ...]
    at: Timestamp
    """By that host's clock."""


class Answer(WireModel):
    """The target has reserved; this is what it lacks."""

    missing_layers: tuple[str, ...]
    image_wanted: bool
    """Whether anything of the image has to be sent (its configuration, if not layers)."""
    engine: Engine
    held_blobs: tuple[str, ...] = ()
    """In the containerd image store: digests of the layer blobs that it has, whichever image they belong to."""
    init_wanted: bool = False
    binds: tuple[str, ...] = ()
    """Bind mounts, by their path on the host, whose content is wanted: nothing is there, and it may be written."""
    notes: tuple[str, ...] = ()


class Created(WireModel):
    """The container is created on the target."""

    container_id: ContainerId
    notes: tuple[str, ...] = ()


class Staged(WireModel):
    """Its root file system is mounted, and the runtime waits for images."""

    network_attached_early: bool
    """Whether dockerd attaches the network during the restore (before 28) or after it."""


class SentPart(WireModel):
    """One stream as the source sent it."""

    name: str
    sha256: str
    bytes: Count


class ImageFile(WireModel):
    """One CRIU image as it must lie in the target's memory."""

    name: ImageName
    size: Count


class Manifest(WireModel):
    """Sent last: all that must have arrived, or nothing is restored."""

    parts: tuple[SentPart, ...]
    images: tuple[ImageFile, ...]
    tasks: Count
    rounds: Count = 0
    """Of pre-copy; the images are what was written since the last."""


class Prepared(WireModel):
    """Restored, stopped, locked, proved."""

    tasks: int
    restore_ms: float
    phases: tuple[PhaseTime, ...]


class Running(WireModel):
    """The container runs on the target."""

    phases: tuple[PhaseTime, ...]
    notes: tuple[str, ...] = ()
    network_ms: float | None = None
    """Unlocking and announcing; None when it is said again."""
    cpu_s: float = 0
    """Of the target's agent and its commands, since it took the offer."""


class Arrival(StrEnum):
    """How far the memory of a container is that runs by post-copy."""

    COMING = "coming"
    WHOLE = "whole"
    LOST = "lost"  # the channel's end at the target is gone while pages were missing


class Arrived(WireModel):
    """Whether the last page is across."""

    state: Arrival
    detail: tuple[str, ...] = ()


class DecisionKind(StrEnum):
    PENDING = "pending"
    COMMIT = "commit"
    ABORT = "abort"


class Decision(WireModel):
    decision: DecisionKind
