"""What Docker says, as dataclasses: its JSON ends here. `raw` is kept where migration/spec.py needs every field.

Nothing here talks to Docker. A missing or null field becomes the empty value of its type, as Go would have it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from protocol.status import Engine

Json = Mapping[str, Any]

_HEALTH = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)")
_SNAPSHOTTER = ["driver-type", "io.containerd.snapshotter.v1"]
# What an image says of a container made from it. The two image stores and Docker's versions show more or fewer keys.
_IMAGE_CONFIG = (
    "User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels StopSignal Healthcheck OnBuild Shell ArgsEscaped"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of a container, as Docker resolved it."""

    kind: str
    """volume, bind, tmpfs, image, npipe or cluster."""
    name: str
    source: str
    destination: str
    driver: str
    mode: str
    writable: bool


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's place on one network; addresses with prefix length, empty while it does not run."""

    network: str
    network_id: str
    ipv4: str
    ipv6: str
    mac: str

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.ipv4, self.ipv6)))


@dataclass(frozen=True, slots=True)
class Container:
    """A container, as `docker inspect` shows it."""

    id: str
    name: str
    pid: int
    state: str
    """Docker's word: created, running, paused, restarting, removing, exited, dead."""
    running: bool
    started_at: str
    """Of the last start, as Docker writes it."""
    paused: bool
    health: str
    image_id: str
    image: str
    """As the one who made the container named it; may be an id."""
    restart_policy: Json
    auto_remove: bool
    tty: bool
    runtime: str
    log_path: str
    """Of the json-file driver; Docker does not show that of `local`."""
    log_driver: str
    labels: Mapping[str, str]
    exec_ids: tuple[str, ...]
    mounts: tuple[Mount, ...]
    networks: tuple[Attachment, ...]
    raw: Json
    exit_code: int = 0
    """Of its last end; 0 while it has not ended."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A container, as a line of `docker ps`."""

    id: str
    name: str
    image: str
    state: str
    health: str
    labels: Mapping[str, str]
    ports: tuple[tuple[int, str], ...] = ()
    """Of the host, with protocol: published just now."""
    volumes: tuple[tuple[str, bool], ...] = ()
    """Names of the volumes that are mounted in it, and whether writable."""
    networks: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    id: str
    diff_ids: tuple[str, ...]
    config: Json
    """Command, environment and the like: the same words whichever engine and image store say it."""
    tags: tuple[str, ...]
    size: int
    architecture: str


@dataclass(frozen=True, slots=True)
class Exec:
    """A command that was started inside a container beside its own."""

    id: str
    running: bool
    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's end of a network, as the network has it."""

    holder: str
    """The container's id, also of one that Docker has forgotten; `ep-` and its own id where it is in none."""
    name: str
    """The container's."""
    addresses: tuple[str, ...]
    """With prefix length."""


@dataclass(frozen=True, slots=True)
class Network:
    id: str
    name: str
    driver: str
    scope: str
    endpoints: tuple[Endpoint, ...]
    """Of containers on this host; of others', too, where the network is Swarm's."""
    raw: Json

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that are taken, with prefix length."""
        return tuple(address for end in self.endpoints for address in end.addresses)


@dataclass(frozen=True, slots=True)
class Volume:
    name: str
    driver: str
    mountpoint: str
    scope: str
    """`global` where the driver has it on every host."""
    options: Mapping[str, str]
    labels: Mapping[str, str]
    raw: Json


def container(raw: Json) -> Container:
    state, config, host = raw["State"], raw["Config"], raw["HostConfig"]
    return Container(
        id=raw["Id"],
        name=raw["Name"].lstrip("/"),
        pid=state.get("Pid") or 0,
        state=state["Status"],
        running=bool(state.get("Running")),
        started_at=state.get("StartedAt") or "",
        paused=bool(state.get("Paused")),
        health=(state.get("Health") or {}).get("Status") or "",
        image_id=raw["Image"],
        image=config.get("Image") or "",
        restart_policy=host.get("RestartPolicy") or {"Name": "no"},
        auto_remove=bool(host.get("AutoRemove")),
        tty=bool(config.get("Tty")),
        runtime=host.get("Runtime") or "",
        log_path=raw.get("LogPath") or "",
        log_driver=(host.get("LogConfig") or {}).get("Type") or "",
        labels=config.get("Labels") or {},
        exec_ids=tuple(raw.get("ExecIDs") or ()),
        mounts=tuple(mount(entry) for entry in raw.get("Mounts") or ()),
        networks=_attachments(raw),
        raw=raw,
        exit_code=state.get("ExitCode") or 0,
    )


def mount(raw: Json) -> Mount:
    return Mount(
        kind=raw.get("Type") or "",
        name=raw.get("Name") or "",
        source=raw.get("Source") or "",
        destination=raw["Destination"],
        driver=raw.get("Driver") or "",
        mode=raw.get("Mode") or "",
        writable=bool(raw.get("RW")),
    )


def attachment(name: str, raw: Json) -> Attachment:
    return Attachment(
        network=name,
        network_id=raw.get("NetworkID") or "",
        ipv4=_with_prefix(raw.get("IPAddress"), raw.get("IPPrefixLen")),
        ipv6=_with_prefix(raw.get("GlobalIPv6Address"), raw.get("GlobalIPv6PrefixLen")),
        mac=raw.get("MacAddress") or "",
    )


def _attachments(raw: Json) -> tuple[Attachment, ...]:
    networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    return tuple(attachment(name, entry or {}) for name, entry in networks.items())


def _with_prefix(address: str | None, length: int | None) -> str:
    return f"{address}/{length}" if address else ""


def summary(raw: Json) -> Summary:
    # A legacy link shows as one more name, /other/alias.
    names = [name for name in raw.get("Names") or () if name.count("/") == 1]
    health = _HEALTH.search(raw.get("Status") or "")
    return Summary(
        id=raw["Id"],
        name=names[0].lstrip("/") if names else "",
        image=raw.get("Image") or "",
        state=raw["State"],
        health=health[1] if health else "",
        labels=raw.get("Labels") or {},
        ports=tuple(
            sorted({(port["PublicPort"], port["Type"]) for port in raw.get("Ports") or () if "PublicPort" in port})
        ),
        volumes=tuple((mount["Name"], bool(mount.get("RW"))) for mount in raw.get("Mounts") or () if mount.get("Name")),
        networks=_attachments(raw),
    )


def image(raw: Json) -> Image:
    return Image(
        id=raw["Id"],
        diff_ids=tuple((raw.get("RootFS") or {}).get("Layers") or ()),
        config={key: value for key in _IMAGE_CONFIG.split() if (value := (raw.get("Config") or {}).get(key))},
        tags=tuple(raw.get("RepoTags") or ()),
        size=raw.get("Size") or 0,
        architecture=raw.get("Architecture") or "",
    )


def running_exec(raw: Json) -> Exec:
    process = raw.get("ProcessConfig") or {}
    return Exec(
        id=raw["ID"],
        running=bool(raw.get("Running")),
        pid=raw.get("Pid") or 0,
        command=" ".join([process.get("entrypoint") or "", *(process.get("arguments") or ())]),
    )


def memory(raw: Json) -> int:
    stats = raw["memory_stats"].get("stats") or {}
    # cgroup v2 says anon, v1 rss; /dev/shm and other tmpfs are shmem in both.
    return int(stats.get("anon", stats.get("rss", 0))) + int(stats.get("shmem", 0))


def network(raw: Json) -> Network:
    ends = (raw.get("Containers") or {}).items()
    return Network(
        id=raw["Id"],
        name=raw["Name"],
        driver=raw.get("Driver") or "",
        scope=raw.get("Scope") or "",
        endpoints=tuple(endpoint(holder, end) for holder, end in ends),
        raw=raw,
    )


def endpoint(holder: str, raw: Json) -> Endpoint:
    addresses = tuple(raw[key] for key in ("IPv4Address", "IPv6Address") if raw.get(key))
    return Endpoint(holder, raw.get("Name") or "", addresses)


def volume(raw: Json) -> Volume:
    return Volume(
        name=raw["Name"],
        driver=raw.get("Driver") or "",
        mountpoint=raw.get("Mountpoint") or "",
        scope=raw.get("Scope") or "",
        options=raw.get("Options") or {},
        labels=raw.get("Labels") or {},
        raw=raw,
    )


def volume_drivers(info: Json) -> tuple[str, ...]:
    """Those that were used so far, or looked through for a volume."""
    return tuple((info.get("Plugins") or {}).get("Volume") or ())


def engine(version: Json, info: Json, runtime: str) -> Engine:
    """The engine without CRIU, which Docker does not know of."""
    components = {entry["Name"]: entry["Version"] for entry in version.get("Components") or ()}
    options = {part for option in info.get("SecurityOptions") or () for part in option.split(",")}
    store: Literal["graphdriver", "containerd"] = "graphdriver"
    if _SNAPSHOTTER in (info.get("DriverStatus") or ()):
        store = "containerd"
    return Engine(
        docker=version["Version"],
        api=version["ApiVersion"],
        runc=components.get("runc", ""),
        storage_driver=info.get("Driver") or "",
        image_store=store,
        cgroup_version=1 if str(info.get("CgroupVersion")) == "1" else 2,
        userns_remap="name=userns" in options,
        apparmor="name=apparmor" in options,
        selinux="name=selinux" in options,
        runtime_registered=runtime in (info.get("Runtimes") or {}),
    )
