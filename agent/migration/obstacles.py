"""What stands against moving a container, as far as the source can see: each a code, a sentence and a hint.

Pure: judges what Docker (docker_model) and the kernel (view.py) say. The lists of what CRIU can carry are those of
CRIU 4.2 (`criu/files.c: dump_one_file`, `criu/sockets.c`, `criu/namespaces.c`). What the target has against it, it
says itself.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from agent.doors.docker_model import Container, Exec, Summary
from agent.migration.view import SEMAPHORE, OpenFile, View
from agent.network.sockets import Bound
from protocol import peer
from protocol.errors import Reason, Why
from protocol.reasons import against as _no

ANON_INODES: Final = frozenset({"eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd"})
PROTOCOLS: Final = frozenset(
    {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6"}
    | {"UNIX", "UNIX-STREAM", "NETLINK", "PACKET"}
)
DEVICES: Final = frozenset({(10, 200), (10, 235)})  # /dev/net/tun, /dev/autofs
# Memory devices (null, zero, random, ...); terminals, which CRIU makes again in the container's own devpts.
DEVICE_MAJORS: Final = frozenset({1, 4, 5, *range(128, 144), 188, 204})
GPUS: Final = ("/dev/nvidia", "/dev/dri", "/dev/kfd")
HARDWARE: Final = (*GPUS, "/dev/infiniband", "/dev/vfio", "/dev/kvm", "/dev/sgx")
RUNTIMES: Final = frozenset({"", "runc", "io.containerd.runc.v2"})
OWN_LOGS: Final = frozenset({"json-file", "local", "none", ""})
SENT_LOGS: Final = frozenset({"journald", "syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "logentries"})
NETWORK_DRIVERS: Final = frozenset({"bridge", "macvlan", "ipvlan", "host", "null"})
SHARED_STORAGE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "lustre"})
MANAGERS: Final = {"com.docker.swarm.task.id": "Swarm", "io.kubernetes.pod.uid": "Kubernetes"}
HINTS: Final = {
    SEMAPHORE: "CRIU would restore it as a plain counter",
    "io_uring": "switch io_uring off in the program (redis: io-uring no; node: UV_USE_IO_URING=0)",
    "MPTCP": "start the program without multipath TCP (Go: GODEBUG=multipathtcp=0)",
    "MPTCPv6": "start the program without multipath TCP (Go: GODEBUG=multipathtcp=0)",
}


def obstacles(
    container: Container, view: View, execs: Sequence[Exec] = (), runtime: str = "transship"
) -> tuple[Reason, ...]:
    """Everything against it; empty if it can be moved. `execs` are the running ones, `runtime` is ours."""
    found = [
        *_state(container),
        *_namespaces(container),
        *_privileges(container, runtime),
        *_surroundings(container),
        *_execs(foreign(container, execs)),
        *_tasks(view, {found.pid for found in execs}),
        *_files(view),
        *_unix_sockets(view),
        *_lost_without_a_word(view),
    ]
    return tuple(dict.fromkeys(found))


def foreign(container: Container, execs: Sequence[Exec]) -> tuple[Exec, ...]:
    """Those that are not Docker's own probes of its health."""
    return tuple(found for found in execs if not _is_probe(container, found))


def shared_volumes(container: Container, copied: Sequence[str], running: Sequence[Summary]) -> tuple[Reason, ...]:
    """Volumes that another running container has too: copied, they would be two, and go apart."""
    ours = {mount.name: mount.writable for mount in container.mounts if mount.name in copied}
    return tuple(
        _no(
            Why.SHARED_VOLUME,
            f"its volume {name} is also used by {other.name}, which stays here",
            "stop that first, or share no volume",
        )
        for other in running
        for name, writable in dict.fromkeys(other.volumes)
        if other.id != container.id and name in ours and (writable or ours[name])
    )


def belongings_against(networks: Sequence[peer.Network], volumes: Sequence[peer.Volume]) -> tuple[Reason, ...]:
    """What in its networks and volumes can't be made again or carried."""
    return tuple(dict.fromkeys([*_networks(networks), *_volumes(volumes)]))


def bound_against(bound: Bound, wished: Collection[str], *, address_moves_along: bool) -> tuple[Reason, ...]:
    """Sockets that could not be bound again as they are.

    On an address that is asked for at the target a program may listen before it is there (identity.bind_as_usual).
    """
    staying = () if address_moves_along else sorted({*bound.addresses.difference(wished), *bound.connected})
    return (
        *(
            _no(
                Why.BOUND_ADDRESS,
                f"a socket of it is bound to {address}, an address that does not move along",
                "let it listen on all addresses, or give it a network whose addresses move along (macvlan)",
            )
            for address in staying
        ),
        *(
            _no(
                Why.BOUND_INTERFACE,
                f"a socket of it is bound to the interface {name}, which is not there yet when CRIU restores it",
                "close it, then move",
            )
            for name in sorted(bound.interfaces)
        ),
    )


def network_against(additions: Sequence[str], extraordinary: Iterable[str]) -> tuple[Reason, ...]:
    """What of its network neither Docker nor CRIU would make again."""
    return (
        *(
            _no(
                Why.NETWORK_ADDITION,
                f"its network has {addition}, which Docker has not given it and would not give it on the target",
                "take that away, then move; it can be made again there",
            )
            for addition in additions
        ),
        *(
            _no(Why.TCP_OPTION, f"a TCP socket of it has {what}, which CRIU can't carry")
            for what in sorted(extraordinary)
        ),
    )


def warnings(container: Container, view: View) -> tuple[str, ...]:
    """What does not stand against a move, but will be noticed."""
    return tuple(dict.fromkeys(_warnings(container, view)))


# As Docker says


def _state(container: Container) -> Iterator[Reason]:
    if container.paused:
        yield _no(Why.PAUSED, "it is paused", "docker unpause it, then move it")
    elif not container.running or container.state != "running":
        hint = "only a running container has state to move; create a stopped one anew at the target"
        yield _no(Why.NOT_RUNNING, f"it is {container.state}", hint)
    if container.tty:
        yield _no(
            Why.TERMINAL,
            "it has a terminal (docker run --tty), whose other end is on this host",
            "run it without --tty",
        )


def _namespaces(container: Container) -> Iterator[Reason]:
    host = container.raw["HostConfig"]
    for key, what in (("NetworkMode", "network"), ("PidMode", "process"), ("IpcMode", "IPC"), ("UTSMode", "UTS")):
        mode = str(host.get(key) or "")
        if mode == "host" and key != "NetworkMode":
            yield _no(
                Why.HOST_NAMESPACE,
                f"it shares the {what} namespace of the host",
                f"give it a {what} namespace of its own",
            )
        elif mode.startswith("container:"):
            other = mode.removeprefix("container:")[:12]
            yield _no(Why.SHARED_NAMESPACE, f"it shares the {what} namespace of container {other}, which stays here")
    if host.get("IpcMode") == "shareable":
        hint = "run it with --ipc private, which is Docker's default"
        yield _no(
            Why.SHAREABLE_IPC,
            "its /dev/shm is a mount on this host (--ipc shareable), whose content does not come along",
            hint,
        )
    if host.get("UsernsMode") == "host":
        yield _no(Why.HOST_NAMESPACE, "it is exempt from user namespace remapping (--userns host)")


def _privileges(container: Container, runtime: str) -> Iterator[Reason]:
    host = container.raw["HostConfig"]
    if host.get("Privileged"):
        yield _no(
            Why.PRIVILEGED,
            "it is privileged, with all devices of this host",
            "give it the capabilities and devices it needs",
        )
    if host.get("DeviceRequests"):
        yield _no(Why.GPU, "it uses a GPU or the like (--gpus), whose state can't be carried")
    for device in host.get("Devices") or ():
        if device["PathOnHost"].startswith(HARDWARE):
            why = Why.GPU if device["PathOnHost"].startswith(GPUS) else Why.DEVICE
            yield _no(why, f"it uses the device {device['PathOnHost']}, whose state can't be carried")
    if container.runtime not in (*RUNTIMES, runtime):
        yield _no(Why.RUNTIME, f"it is run by {container.runtime}", "only containers of runc can be checkpointed")
    if host.get("Links"):
        yield _no(
            Why.LEGACY_LINKS,
            "it has legacy links (--link) to containers that stay here",
            "put both on a user-defined network",
        )


def _surroundings(container: Container) -> Iterator[Reason]:
    for label, manager in MANAGERS.items():
        if label in container.labels:
            yield _no(Why.MANAGED, f"it belongs to {manager}, which would start another in its place")
    if container.log_driver not in OWN_LOGS | SENT_LOGS:
        yield _no(Why.LOG_PLUGIN, f"its log driver {container.log_driver} is a plugin of this host")
    for mount in container.mounts:
        if mount.kind not in ("volume", "bind", "tmpfs"):
            yield _no(
                Why.MOUNT,
                f"its mount {mount.destination} is of the kind {mount.kind}, which can't be made again elsewhere",
            )


def _is_probe(container: Container, found: Exec) -> bool:
    """A probe of its health: it ends by itself within moments, and the next one runs on the target."""
    config = container.raw["Config"]
    kind, *words = (config.get("Healthcheck") or {}).get("Test") or ["NONE"]
    if kind == "CMD-SHELL":
        words = [*(config.get("Shell") or ("/bin/sh", "-c")), *words]
    return kind != "NONE" and found.command == " ".join(words)


def _execs(execs: Sequence[Exec]) -> Iterator[Reason]:
    for found in execs:
        message = f"`{found.command}` was started in it by docker exec and still runs"
        yield _no(Why.EXEC_SESSION, message, "end it, then move")


def _networks(networks: Sequence[peer.Network]) -> Iterator[Reason]:
    for network in networks:
        if not network.driver:
            yield _no(Why.NETWORK_GONE, f"its network {network.name} is gone on this host")
        elif network.driver not in NETWORK_DRIVERS:
            message = f"its network {network.name} is of the driver {network.driver}, which is not supported"
            yield _no(Why.NETWORK_DRIVER, message)


def _volumes(volumes: Sequence[peer.Volume]) -> Iterator[Reason]:
    for volume in volumes:
        if volume.kind == "volume" and volume.driver != "local" and (volume.anonymous or not volume.shared):
            message = f"its volume {volume.name} is of the driver {volume.driver}, which has it on this host alone"
            yield _no(
                Why.VOLUME_DRIVER,
                message,
                "use a plain local volume, or a named one of a driver with the scope `global`",
            )
        device, kind = volume.options.get("device", ""), volume.options.get("type", "")
        if volume.kind == "volume" and volume.driver == "local" and device and kind not in SHARED_STORAGE:
            message = f"its volume {volume.name} is a mount of {device} on this host, whose content does not come along"
            yield _no(Why.VOLUME_OF_HOST, message, "use a plain local volume, or one on shared storage")


# As the kernel says


def _lost_without_a_word(view: View) -> Iterator[Reason]:
    """What CRIU does not look at: it would be gone, and nobody would be told."""
    for group in view.groups:
        yield _no(Why.MULTICAST, f"it has joined the multicast group {group}, and CRIU does not carry memberships")
    for queue in view.queues:
        yield _no(
            Why.MESSAGE_QUEUE,
            f"it has the POSIX message queue /{queue}, which CRIU can't carry",
            "remove it (mq_unlink)",
        )


BEING_PUT_IN = "runc:["
"""What runc calls itself between its fork and the program's start."""


def _tasks(view: View, execs: set[int]) -> Iterator[Reason]:
    pids = {process.pid for process in view.processes}
    own = {process.pid: process.namespaces for process in view.processes}.get(view.init, {})
    for process in view.processes:
        who = f"{process.name} (pid {process.inner_pid} in it)"
        if process.tracer:
            yield _no(Why.TRACED, f"{who} is being traced", "detach the debugger")
        outsider = process.pid != view.init and process.parent not in pids and process.pid not in execs
        # one that runc is just putting in may be a probe that has begun since the list of them: it is waited for later
        if outsider and not process.name.startswith(BEING_PUT_IN):
            yield _no(Why.FOREIGN_PROCESS, f"{who} was put into it from outside", "end it, then move")
        if process.state == "T" and view.cgroup_version == 1:
            # the freezer of cgroup v1 keeps a stopped task from being traced (kernels from 6.1): CRIU would wait for it
            yield _no(
                Why.STOPPED_PROCESS, f"{who} is stopped, and can't be dumped with cgroup v1", "continue it (kill -CONT)"
            )
        for kind, name in process.namespaces.items():
            # What docker exec starts in a moved container is in this host's time namespace: CRIU made one for the rest.
            if own.get(kind, name) != name and not (kind == "time" and process.pid in execs):
                yield _no(
                    Why.NESTED_NAMESPACE, f"{who} has a {kind} namespace of its own, and CRIU carries one for all"
                )


def _files(view: View) -> Iterator[Reason]:
    for process in view.processes:
        for opened in process.files:
            if not _carried(opened):
                what = f"a socket of {opened.name}" if opened.kind == "socket" else opened.name
                if opened.kind == "renamed":
                    what += ", a name that is gone while the file has another one"
                verb = "maps" if opened.fd < 0 else "has open"
                yield _no(
                    _why(opened), f"{process.name} {verb} {what}, which CRIU can't carry", HINTS.get(opened.name, "")
                )
    if view.lost_watches:
        yield _no(Why.INOTIFY, f"{view.lost_watches} of its inotify watches are on files that have no path any more")


def _why(opened: OpenFile) -> Why:
    """Which of the reasons it is that something open can't be carried."""
    if opened.kind == "anon" and opened.name == "io_uring":
        return Why.IO_URING
    return {"socket": Why.SOCKET, "renamed": Why.RENAMED_FILE}.get(opened.kind, Why.OPEN_FILE)


def _carried(opened: OpenFile) -> bool:
    match opened.kind:
        case "anon":
            return opened.fd >= 0 and opened.name in ANON_INODES
        case "socket":
            return opened.name in PROTOCOLS
        case "char":
            return opened.device is not None and (opened.device[0] in DEVICE_MAJORS or opened.device in DEVICES)
        case "marks":
            return True
    return False


def marks_against(view: View) -> Iterator[Reason]:
    """Against pre-copy: who takes the kernel's marks of written pages away takes them from CRIU, and CRIU from it."""
    for process in view.processes:
        if any(opened.kind == "marks" for opened in process.files):
            message = f"{process.name} looks itself at what it has written (it has /proc/PID/clear_refs open)"
            yield _no(Why.NO_PRECOPY, message, "`--strategy cold` moves it all the same")


def _unix_sockets(view: View) -> Iterator[Reason]:
    """Connections that leave the container: Docker's own socket, a system bus, a log."""
    held = {opened.inode: process.name for process in view.processes for opened in process.files if opened.inode}
    names = {found.inode: found.name for found in view.unix}
    for found in view.unix:
        if found.inode in held and found.peer and found.peer not in held:
            name = names.get(found.peer, "*")
            where = f"to {name}" if name != "*" else "without a name"
            yield _no(
                Why.UNIX_SOCKET,
                f"{held[found.inode]} has a UNIX socket connection {where} with a process outside",
                "close it, then move; a mounted socket that is not connected is no obstacle",
            )


def _warnings(container: Container, view: View) -> Iterator[str]:
    if view.on_host_network:
        yield "it is on the host's network: its address becomes the target's, and its connections end"
        yield "multicast groups that it has joined can't be told from the host's own, and are not joined again"
    if container.log_driver in SENT_LOGS:
        yield f"its log lines so far stay where the driver {container.log_driver} sent them from here"
    for process in view.processes:
        if 0 < process.processors < _processors(container, view):
            yield f"{process.name} has chosen its processors (sched_setaffinity), and will run on any"
        if process.state == "D":
            yield f"{process.name} waits in the kernel; if it does not come back in time, the freeze is taken back"
    if container.auto_remove:
        yield "it is removed when it ends (--rm), so it can't be kept on this host after the move"


def _processors(container: Container, view: View) -> int:
    """How many the container may use."""
    given = str(container.raw["HostConfig"].get("CpusetCpus") or "")
    ranges = [(part.split("-")[0], part.split("-")[-1]) for part in given.split(",") if part]
    return sum(int(last) - int(first) + 1 for first, last in ranges) or view.processors
