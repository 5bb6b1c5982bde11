"""What the kernel says of a lab host's containers: their tasks, whether these may run, if their network is locked.

Read on the outer machine, where every process and every cgroup of the lab can be seen, by code that shares nothing with
the agents.
"""

import contextlib
import ctypes
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from lab.host import Host
from lab.shell import LabError

TABLE = "transship"
_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER, _GET_TABLE, _DUMP = 12, 10 << 8 | 1, 0x301
_ENGINES_OWN = ("criu", "runc", "runc:[0:PARENT]", "runc:[1:CHILD]", "runc:[2:INIT]")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Task:
    """A process of a container."""

    pid: int
    state: str
    name: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A container's cgroup on one host, and what is in it of the container's own."""

    host: str
    container: str
    freezer: str
    tasks: tuple[Task, ...]

    @property
    def runnable(self) -> bool:
        """Whether any of its tasks could execute an instruction now."""
        return self.freezer == "THAWED" and any(task.state not in "TtZX" for task in self.tasks)


def freezer_folder(host: Host) -> Path | None:
    """A host's cgroup, by which its tasks are frozen: of version 2 where the machine has nothing else."""
    return _folder(host, "freezer")


def controller_folder(host: Host, controller: str, container: str) -> Path | None:
    folder = (_folder(host, controller) or Path("/none")) / "docker" / container
    return folder if folder.exists() else None


def _folder(host: Host, controller: str) -> Path | None:
    record = host.node.place / "cgroups"
    folders = [Path(line) for line in record.read_text().splitlines()] if record.exists() else []
    unified = [folder for folder in folders if (folder / "cgroup.controllers").exists()]
    return next((folder for folder in folders if controller in folder.parts), unified[0] if unified else None)


def _freezer(group: Path) -> str:
    """THAWED, FREEZING or FROZEN, as version 1 says it."""
    if (state := group / "freezer.state").exists():
        return state.read_text().strip()
    if "frozen 1" in (group / "cgroup.events").read_text():
        return "FROZEN"
    return "FREEZING" if (group / "cgroup.freeze").read_text().strip() == "1" else "THAWED"


def processes(host: Host) -> list[int]:
    """Every process of a host that is not in another pid namespace, by its number on the outer machine."""
    found: list[int] = []
    with contextlib.suppress(OSError, LabError):
        engines = _pid_namespace(host.node.init().pid)
        for folder, _, _ in os.walk(freezer_folder(host) or ""):
            with contextlib.suppress(OSError):
                found += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
        return [pid for pid in found if _pid_namespace(pid) == engines]
    return []


def _pid_namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116 - of a /proc link
    except OSError:
        return 0


def copies(host: Host) -> list[Copy]:
    """Every container's cgroup of a host, also of those that dockerd knows nothing of."""
    folder = freezer_folder(host)
    found = []
    with contextlib.suppress(OSError, LabError):
        init = _pid_namespace(host.node.init().pid)
        for group in sorted((folder / "docker").iterdir()) if folder else ():
            if group.is_dir():
                with contextlib.suppress(OSError):
                    state = _freezer(group)
                    pids = [int(line) for line in (group / "cgroup.procs").read_text().split()]
                    tasks = tuple(filter(None, (_task(pid, init) for pid in pids)))
                    found.append(Copy(host.name, group.name, state, tasks))
    return found


def _task(pid: int, engines: int) -> Task | None:
    """A process, unless it is one of the engine's that works in the container's cgroup."""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name not in _ENGINES_OWN and _pid_namespace(pid) != engines:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            return Task(pid, state, name)
    return None


def tables(pid: int) -> list[str] | None:
    """The names of the nftables tables in a process's network namespace; None where it has gone. Asks the kernel."""
    try:
        return _names(_socket_in(f"/proc/{pid}/ns/net"))
    except OSError:
        return None


def _socket_in(path: str) -> socket.socket:
    """A socket to netfilter that was made in that namespace; the calling thread is where it was afterwards."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
            try:
                return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            finally:
                _enter(here)
        finally:
            os.close(there)
    finally:
        os.close(here)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _names(netlink: socket.socket) -> list[str]:
    with netlink:
        netlink.settimeout(2)
        netlink.send(struct.pack("=IHHII", 20, _GET_TABLE, _DUMP, 1, 0) + struct.pack("=BBH", 0, 0, 0))
        return _answers(netlink)


def _answers(netlink: socket.socket) -> list[str]:
    names: list[str] = []
    while True:
        data = netlink.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind in (2, 3):  # an error, or the end
                return names
            at = 20
            while at + 4 <= length:
                size, attribute = struct.unpack_from("=HH", data, at)
                if attribute & 0x7FFF == 1:
                    names.append(data[at + 4 : at + size].split(b"\0")[0].decode())
                at += (size + 3) & ~3
            data = data[(length + 3) & ~3 :]


def first_task(host: Host, container: str) -> int:
    """The number on the outer machine of a container's first process.

    Raises:
        LabError: it has none.

    """
    for copy in copies(host):
        if copy.container == container and copy.tasks:
            return min(task.pid for task in copy.tasks)
    raise LabError(f"{container[:12]} has no task on {host.name}")


def locked(copy: Copy) -> bool | None:
    """Whether nothing reaches it or leaves it; None where it has gone meanwhile."""
    for task in copy.tasks:
        found = tables(task.pid)
        if found is not None:
            return TABLE in found
    return None


def waiting(host: Host, container: str) -> str:
    """What each of a container's threads is at, by the kernel: for a container that does not go on."""
    found = []
    for task in (task for copy in copies(host) if copy.container == container for task in copy.tasks):
        for folder in sorted(Path(f"/proc/{task.pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                found.append(f"{folder.name} {state} {(folder / 'syscall').read_text().strip()}")
    return "; ".join(found) or "no thread"
