"""What the kernel shows of a running container: its tasks, what they hold open, its sockets. Read once, then judged.

Reading changes nothing and may be done at any time; a task that ends meanwhile is left out. What stands against a
move is said in obstacles.py.
"""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import ContainerGone
from agent.base.shell import Shell
from agent.checkpoint.freezer import cgroup_of
from agent.network import groups
from agent.network.namespace import in_netns, is_ours

NAMESPACES = ("pid", "user", "uts", "ipc", "cgroup", "time")
"""Those of which CRIU dumps one for the whole container; mount and network namespaces may be nested."""
SEMAPHORE = "eventfd in semaphore mode"
_MARKS = re.compile(r"/\d+/clear_refs$")
_WATCH = re.compile(rb"^inotify .*?\bino:([0-9a-f]+) sdev:([0-9a-f]+)", re.MULTILINE)
_UNIX = re.compile(r"^u_(\w+)\s+(\S+)\s+\d+\s+\d+\s+(.*) (\d+) \* (\d+)\s*$")
# In /proc/net/tcp; the rest has no socket of a process behind it or is listening.
_TCP_STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 8: "CLOSE_WAIT", 9: "LAST_ACK"}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor, or a mapping (fd -1), that is no plain file, pipe or terminal."""

    fd: int
    kind: str
    """anon, socket, char, block, renamed (a file whose name is gone and which has another one), marks (by which a
    program has the kernel's marks of written pages taken away), or other."""
    name: str
    """Of an anonymous inode its type (io_uring, eventpoll), of a socket its protocol (TCP, MPTCP), else the path."""
    device: tuple[int, int] | None = None
    inode: int = 0


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    inner_pid: int
    name: str
    state: str
    """The kernel's letter."""
    parent: int
    tracer: int
    namespaces: Mapping[str, str]
    files: tuple[OpenFile, ...]
    processors: int = 0
    """How many it may run on; 0 if that was not seen."""
    seccomp: bool = False
    """Whether a filter of it judges each system call."""


@dataclass(frozen=True, slots=True)
class UnixSocket:
    kind: str
    """str, dgr or seq."""
    name: str
    """Where it is bound, or *."""
    inode: int
    peer: int


@dataclass(frozen=True, slots=True)
class TcpConnection:
    local: str
    remote: str
    """Address and port in the kernel's hexadecimal."""
    state: str


@dataclass(frozen=True, slots=True)
class View:
    """A container at one moment."""

    init: int
    """Its first process, as the host counts."""
    processes: tuple[Process, ...]
    unix: tuple[UnixSocket, ...] = ()
    tcp: tuple[TcpConnection, ...] = ()
    watched: tuple[str, ...] = ()
    """Paths on the root file system under an inotify watch; CRIU finds them only if told (`irmap-scan-path`)."""
    lost_watches: int = 0
    """Watches on the root file system whose path was not found."""
    groups: tuple[str, ...] = ()
    """Multicast groups that were joined; none is known of where the host has them too."""
    queues: tuple[str, ...] = ()
    """POSIX message queues."""
    processors: int = 0
    """Of this host, as far as the container may use them."""
    cgroup_version: int = 2
    on_host_network: bool = False

    @property
    def sockets(self) -> frozenset[int]:
        """The inodes of the sockets that its processes hold."""
        return frozenset(opened.inode for process in self.processes for opened in process.files if opened.inode)


async def look(shell: Shell, pid: int) -> View:
    """Look at the container whose first process is `pid`.

    Raises:
        ContainerGone: it has ended.

    """
    group = cgroup_of(pid)
    processes = await asyncio.to_thread(lambda: tuple(filter(None, map(_process, group.tasks()))))
    if all(process.pid != pid for process in processes):
        raise ContainerGone(f"process {pid} is not in the cgroup {group.path}")
    watches = await asyncio.to_thread(_overlay_watches, pid, processes)
    watched = await asyncio.to_thread(_find, pid, watches) if watches else ()
    shared = is_ours(pid)
    rows = await shell.run(*in_netns(pid, "ss", "--unix", "--all", "--numeric", "--no-header"), label="ss")
    return View(
        init=pid,
        processes=processes,
        unix=parse_unix(rows.stdout),
        tcp=_tcp(pid, {opened.inode for process in processes for opened in process.files} if shared else None),
        watched=watched,
        lost_watches=max(0, len(watches) - len(watched)),
        groups=() if shared else groups.joined(pid),
        queues=_queues(pid),
        processors=len(os.sched_getaffinity(0)),
        cgroup_version=group.version,
        on_host_network=shared,
    )


def _process(pid: int) -> Process | None:
    folder = Path(f"/proc/{pid}")
    try:
        fields = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        return Process(
            pid=pid,
            inner_pid=int(fields["NSpid"].split()[-1]),
            name=fields["Name"],
            state=fields["State"][:1],
            parent=int(fields["PPid"]),
            tracer=int(fields["TracerPid"]),
            namespaces=_namespaces(folder),
            files=(*_descriptors(folder), *_mappings(folder)),
            processors=len(os.sched_getaffinity(pid)),
            seccomp=fields.get("Seccomp", "").strip() == "2",
        )
    except (OSError, KeyError):
        return None


def _namespaces(folder: Path) -> dict[str, str]:
    links = ((name, folder / "ns" / name) for name in NAMESPACES)
    return {name: str(link.readlink()) for name, link in links if link.is_symlink()}


def _descriptors(folder: Path) -> list[OpenFile]:
    found: list[OpenFile] = []
    for path in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):
            opened = _classify(path, str(path.readlink()))
            if opened is not None:
                found.append(opened)
    return found


def _classify(path: Path, target: str) -> OpenFile | None:
    fd = int(path.name)
    if target.startswith("anon_inode:"):
        name = target.removeprefix("anon_inode:").strip("[]")
        return OpenFile(fd, "anon", SEMAPHORE if name == "eventfd" and _is_semaphore(path) else name)
    if target.startswith("socket:["):
        protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode()
        return OpenFile(fd, "socket", protocol, inode=int(target[8:-1]))
    if target.endswith(" (deleted)") and _has_another_name(path):
        return OpenFile(fd, "renamed", target.removesuffix(" (deleted)"))
    if target.startswith("/dev/"):
        found = path.stat()
        kind = "char" if stat.S_ISCHR(found.st_mode) else "block" if stat.S_ISBLK(found.st_mode) else ""
        device = os.major(found.st_rdev), os.minor(found.st_rdev)
        return OpenFile(fd, kind, target, device) if kind else None
    if _MARKS.search(target):
        return OpenFile(fd, "marks", target)
    known = target.startswith(("/", "pipe:", "mnt:", "net:", "pid:", "user:", "uts:", "ipc:", "cgroup:", "time:"))
    return None if known else OpenFile(fd, "other", target)


def _is_semaphore(descriptor: Path) -> bool:
    about = descriptor.parents[1] / "fdinfo" / descriptor.name
    return b"eventfd-semaphore: 1" in about.read_bytes()


def _has_another_name(descriptor: Path) -> bool:
    """CRIU gives such a file a name for the time of the move; on a tmpfs it takes that along itself."""
    found = descriptor.stat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 0 and not _on_tmpfs(descriptor.parents[1], found.st_dev)


def _on_tmpfs(process: Path, device: int) -> bool:
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = (process / "mountinfo").read_text().splitlines()
    return any(line.split()[2] == number and " - tmpfs " in line for line in lines)


def _queues(pid: int) -> tuple[str, ...]:
    """Docker mounts the IPC namespace's queues at their usual place."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            if " - mqueue " in line:
                return tuple(sorted(each.name for each in Path(f"/proc/{pid}/root{line.split()[4]}").iterdir()))
    return ()


def _mappings(folder: Path) -> list[OpenFile]:
    """Mapped devices and anonymous inodes, each once."""
    names = {line.split(None, 5)[5] for line in (folder / "maps").read_text().splitlines() if line.count(" ") > 5}
    found: list[OpenFile] = []
    for name in sorted(name.strip() for name in names):
        if name.startswith("anon_inode:"):
            found.append(OpenFile(-1, "anon", name.removeprefix("anon_inode:").strip("[]")))
        elif name.startswith("/dev/") and not name.startswith("/dev/zero"):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR((folder / "root" / name[1:]).lstat().st_mode):
                    found.append(OpenFile(-1, "char", name))
    return found


def _overlay_watches(pid: int, processes: Collection[Process]) -> frozenset[int]:
    """Inodes on the root file system that are watched: CRIU can't open those by their handle."""
    try:
        root = Path(f"/proc/{pid}/root").stat().st_dev
    except OSError:
        return frozenset()
    found: set[int] = set()
    for process in processes:
        for opened in process.files:
            if opened.kind == "anon" and opened.name == "inotify":
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{process.pid}/fdinfo/{opened.fd}").read_bytes()
                    found |= {int(inode, 16) for inode, device in _WATCH.findall(text) if _device(device) == root}
    return frozenset(found)


def _device(text: bytes) -> int:
    """The kernel's own packing of a device number, as stat shows it."""
    number = int(text, 16)
    return os.makedev(number >> 20, number & 0xFFFFF)


def _find(pid: int, inodes: Collection[int]) -> tuple[str, ...]:
    """The paths of inodes on the container's root file system, as it sees them."""
    top = Path(f"/proc/{pid}/root")
    about = top.stat()
    found = {about.st_ino: "/"} if about.st_ino in inodes else {}
    for folder, folders, files in os.walk(f"{top}/"):
        for name in (*folders, *files):
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                here = path.lstat()
                if here.st_dev != about.st_dev and name in folders:
                    folders.remove(name)  # a volume may be large, and there CRIU needs no path
                elif here.st_dev == about.st_dev and here.st_ino in inodes:
                    found[here.st_ino] = f"/{path.relative_to(top)}"
        if len(found) == len(inodes):
            break
    return tuple(sorted(found.values()))


def parse_unix(text: str) -> tuple[UnixSocket, ...]:
    """Rows of `ss --unix`: /proc/net/unix does not tell who is connected with whom."""
    matches = filter(None, map(_UNIX.match, text.splitlines()))
    return tuple(UnixSocket(row[1], row[3].strip(), int(row[4]), int(row[5])) for row in matches)


def _tcp(pid: int, inodes: Collection[int] | None) -> tuple[TcpConnection, ...]:
    """Those of a network namespace, or, on the host's, of these sockets."""
    found: list[TcpConnection] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, remote, state, *_, inode = line.split()[:10]
                word = _TCP_STATES.get(int(state, 16))
                if word is not None and (inodes is None or int(inode) in inodes):
                    found.append(TcpConnection(local, remote, word))
    return tuple(found)
