"""Every reason against a move: a code that never changes its meaning, and what is to be done about it.

An error's code (`errors.ErrorCode`) says what became of a command; a reason's says what of the container or of a host
it was. `docs/reasons.md` has this table, with what shows each: tests/unit/test_reasons.py sees to that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol.errors import ErrorCode, Reason, Why

BEGIN: Final = "<!-- reasons: TRANSSHIP_WRITE_DOCS=1 scripts/test unit -k test_reasons.py -->"
END: Final = "<!-- /reasons -->"


class Of(StrEnum):
    """What a reason lies in."""

    CONTAINER = "container"
    HOST = "host"  # where it runs
    PEER = "peer"  # where it is to run
    EITHER = "either host"


@dataclass(frozen=True, slots=True)
class About:
    """One row of the table."""

    code: ErrorCode
    """Of the error, where this is the first reason of a refusal."""
    of: Of
    meaning: str
    remedy: str


_ROWS: Final = (
    # as Docker says
    (Why.NOT_RUNNING, ErrorCode.NOT_RUNNING, Of.CONTAINER, "it does not run", "start it; a stopped one has no state"),
    (Why.PAUSED, ErrorCode.NOT_RUNNING, Of.CONTAINER, "it is paused", "`docker unpause` it"),
    (Why.TERMINAL, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "it has a terminal (`--tty`)", "run it without"),
    (
        Why.HOST_NAMESPACE,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it shares a process, IPC, UTS or user namespace with the host",
        "give it one of its own; the host's network is no obstacle",
    ),
    (
        Why.SHARED_NAMESPACE,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it shares a namespace with another container (`--network container:X`)",
        "put both on a network of theirs",
    ),
    (Why.SHAREABLE_IPC, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "`--ipc shareable`", "run it with `--ipc private`"),
    (
        Why.PRIVILEGED,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it has all devices of the host (`--privileged`)",
        "give it the capabilities and devices that it needs",
    ),
    (Why.GPU, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "it uses a GPU, whose state stays", "none"),
    (Why.DEVICE, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "it uses hardware, whose state stays", "none"),
    (
        Why.RUNTIME,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "another OCI runtime than runc runs it",
        "run it with runc",
    ),
    (Why.LEGACY_LINKS, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "`--link`", "a user-defined network has names too"),
    (
        Why.MANAGED,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "Swarm or Kubernetes would start another in its place",
        "have that move it",
    ),
    (
        Why.LOG_PLUGIN,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "its log goes to a plugin of this host",
        "use a log driver of Docker's own",
    ),
    (
        Why.MOUNT,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a mount of it can't be made again elsewhere",
        "use volumes, bind mounts and tmpfs",
    ),
    (Why.IMAGE_REMOVED, ErrorCode.NOT_MIGRATABLE, Of.HOST, "its image was removed here", "pull it again"),
    (
        Why.STORAGE_DRIVER,
        ErrorCode.NOT_MIGRATABLE,
        Of.HOST,
        "its writable layer is no overlay",
        "overlay2, or the containerd image store with overlayfs",
    ),
    # what it does
    (
        Why.EXEC_SESSION,
        ErrorCode.BUSY,
        Of.CONTAINER,
        "a `docker exec` runs in it",
        "end it, or `--execs wait`; health probes are no obstacle",
    ),
    (Why.TRACED, ErrorCode.BUSY, Of.CONTAINER, "a debugger traces a process of it", "detach it"),
    (
        Why.FOREIGN_PROCESS,
        ErrorCode.BUSY,
        Of.CONTAINER,
        "a process was put into it from outside (`nsenter`)",
        "end it",
    ),
    (
        Why.STOPPED_PROCESS,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a process of it is stopped, on a host of cgroup v1",
        "continue it (`kill -CONT`)",
    ),
    (
        Why.NESTED_NAMESPACE,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a process of it has a namespace of its own (a container in the container)",
        "CRIU carries one for all",
    ),
    (
        Why.IO_URING,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it uses io_uring",
        "switch that off in the program, or by seccomp",
    ),
    (
        Why.OPEN_FILE,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it has something open that CRIU can't carry (a device, userfaultfd, an eventfd as semaphore)",
        "close it",
    ),
    (
        Why.RENAMED_FILE,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "an open file's name is gone while another name of it is there",
        "close it",
    ),
    (
        Why.SOCKET,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a socket of a protocol that CRIU can't carry (multipath TCP, SCTP, VSOCK)",
        "use plain TCP",
    ),
    (
        Why.TCP_OPTION,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a TCP socket with a state that CRIU can't carry",
        "close it",
    ),
    (
        Why.INOTIFY,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it watches files by inotify that have no path any more",
        "end the watch; those with a path are no obstacle",
    ),
    (
        Why.UNIX_SOCKET,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a UNIX socket is connected with a process outside (`docker.sock`, D-Bus, syslog)",
        "close the connection; a socket that is only mounted is no obstacle",
    ),
    (Why.MULTICAST, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "it has joined a multicast group", "leave it"),
    (Why.MESSAGE_QUEUE, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "it has a POSIX message queue", "remove it"),
    (
        Why.SECCOMP,
        ErrorCode.INCOMPATIBLE,
        Of.EITHER,
        "the kernel can't suspend the seccomp filter of its processes",
        "Linux from 4.3 with CONFIG_CHECKPOINT_RESTORE",
    ),
    # its networks and volumes
    (Why.NETWORK_GONE, ErrorCode.NOT_MIGRATABLE, Of.HOST, "a network of it is gone here", "disconnect it"),
    (
        Why.NETWORK_DRIVER,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a network of it is of another driver than bridge, macvlan, ipvlan or host",
        "use one of these",
    ),
    (
        Why.NETWORK_ADDITION,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it has made interfaces, addresses, routes or rules that Docker has not given it",
        "take them away for the move",
    ),
    (
        Why.BOUND_ADDRESS,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a socket is bound to an address that does not move along",
        "listen on all addresses, or use macvlan",
    ),
    (Why.BOUND_INTERFACE, ErrorCode.NOT_MIGRATABLE, Of.CONTAINER, "a socket is bound to an interface", "close it"),
    (
        Why.CONNECTIONS,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "it has TCP connections, and the command or its label refuses to move these",
        "`--tcp close`, or `keep` where its addresses move along",
    ),
    (
        Why.SHARED_VOLUME,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a volume of it is also another container's, which stays",
        "stop that, or use shared storage",
    ),
    (
        Why.VOLUME_DRIVER,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a volume is of a driver that has it on this host alone",
        "a local volume, or a driver with the scope `global`",
    ),
    (
        Why.VOLUME_OF_HOST,
        ErrorCode.NOT_MIGRATABLE,
        Of.CONTAINER,
        "a volume is a mount of something on this host",
        "a plain local volume, or shared storage",
    ),
    # the hosts
    (
        Why.CRIU_VERSION,
        ErrorCode.CRIU_UNUSABLE,
        Of.EITHER,
        "CRIU is missing, too old, or older than where the container comes from",
        "install the same CRIU, 4.2 or newer, on both",
    ),
    (Why.TOOL_MISSING, ErrorCode.NOT_MIGRATABLE, Of.HOST, "runc, nft or nsenter is not installed", "install it"),
    (Why.NOT_SET_UP, ErrorCode.INCOMPATIBLE, Of.PEER, "dockerd does not know the runtime", "`transship setup` there"),
    (
        Why.KERNEL_FEATURE,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "its kernel or CRIU lacks what the source's has and the restore needs",
        "the kernel named, or a newer one",
    ),
    (Why.CPU, ErrorCode.INCOMPATIBLE, Of.PEER, "its processor lacks what the source's has", "a host of the same kind"),
    (Why.ARCHITECTURE, ErrorCode.INCOMPATIBLE, Of.PEER, "it is of another architecture", "none"),
    (Why.CGROUP_VERSION, ErrorCode.INCOMPATIBLE, Of.PEER, "it has the other cgroup version", "boot both with v2"),
    (
        Why.USERNS_REMAP,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "one host uses userns-remap, the other does not",
        "the same on both",
    ),
    (
        Why.LSM,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "what confines it here (AppArmor, SELinux) is not there",
        "a host with it, its profile loaded",
    ),
    (Why.CLOCK_SKEW, ErrorCode.INCOMPATIBLE, Of.PEER, "the hosts' clocks differ", "`chrony` or `timesyncd` on both"),
    (
        Why.NO_POSTCOPY,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "post-copy can't be had; other strategies can",
        "a kernel with userfaultfd; with userns-remap `vm.unprivileged_userfaultfd=1`",
    ),
    (
        Why.NO_PRECOPY,
        ErrorCode.INCOMPATIBLE,
        Of.HOST,
        "pre-copy was asked for, and the kernel does not mark written memory, or a program of it uses the marks itself",
        "`--strategy cold`; a kernel with CONFIG_MEM_SOFT_DIRTY",
    ),
    (Why.NAME_TAKEN, ErrorCode.NAME_TAKEN, Of.PEER, "there is a container of its name", "remove or rename that"),
    (Why.ADDRESS_TAKEN, ErrorCode.ADDRESS_TAKEN, Of.PEER, "an address that it asks for is taken", "free it"),
    (
        Why.ADDRESS_OUTSIDE,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "an address that it asks for, or publishes on, is none there",
        "make the network there with the same subnet",
    ),
    (
        Why.PORT_TAKEN,
        ErrorCode.PORT_TAKEN,
        Of.PEER,
        "a port that it publishes or holds is taken",
        'free it, or `port_policy = "remap"`',
    ),
    (
        Why.NETWORK_MISSING,
        ErrorCode.NETWORK_MISSING,
        Of.PEER,
        "a network of it is not there, and may not be made",
        'make it, or `network_policy = "create"`',
    ),
    (
        Why.NETWORK_DIFFERS,
        ErrorCode.INCOMPATIBLE,
        Of.PEER,
        "its network there is of another driver, or its subnet overlaps with another's",
        "make the network there as it is here",
    ),
    (
        Why.VOLUME_CONFLICT,
        ErrorCode.VOLUME_CONFLICT,
        Of.PEER,
        "a volume or the folder of a bind mount is in the way, or can't be had there",
        "the message says which",
    ),
    (Why.DEVICE_MISSING, ErrorCode.INCOMPATIBLE, Of.PEER, "a device given to it is not there", "none"),
    (Why.CORES, ErrorCode.INCOMPATIBLE, Of.PEER, "it has not the processors that it asks for", "`docker update` it"),
    (Why.NO_MEMORY, ErrorCode.NO_MEMORY, Of.EITHER, "too little memory is free", "free some"),
    (Why.NO_SPACE, ErrorCode.NO_SPACE, Of.PEER, "too little is free on the disk", "free some"),
    (Why.LIMIT, ErrorCode.BUSY, Of.PEER, "as many migrations as it takes are under way", "later"),
    (Why.CORDONED, ErrorCode.HOST_CORDONED, Of.PEER, "it takes no containers", "`transship uncordon`"),
)
ABOUT: Final[Mapping[Why, About]] = {why: About(code, of, said, remedy) for why, code, of, said, remedy in _ROWS}


def against(why: Why, message: str, hint: str = "", code: ErrorCode | None = None) -> Reason:
    """One reason, in its own words."""
    return Reason(code=code or ABOUT[why].code, why=why, message=message, hint=hint)


def as_markdown(shown: Mapping[str, str]) -> Iterator[str]:
    """The table, each line; `shown` says for each code what shows it."""
    yield "| code | lies in | what it means | what to do | shown by |"
    yield "|---|---|---|---|---|"
    for why, row in ABOUT.items():
        yield f"| `{why}` | {row.of} | {row.meaning} | {row.remedy} | {shown.get(why, '')} |"


def page(text: str, shown: Mapping[str, str]) -> str:
    """The page with the table of now."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    rows = "\n".join(as_markdown(shown))
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"
