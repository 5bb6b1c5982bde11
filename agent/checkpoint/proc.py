"""What /proc says: of a container's tasks, of a CRIU at work, of this host's memory and processors."""

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PF_EXITING = 0x4


@dataclass(frozen=True, slots=True)
class Task:
    """A process of the container."""

    pid: int
    inner_pid: int
    """Its id inside the container."""
    state: str
    """The kernel's letter: R, S, D, T (stopped by a signal), t, Z, X."""
    tracer: int
    """The process that traces it by ptrace; 0 for none."""
    resident_bytes: int
    """Anonymous and shared memory in RAM, which a dump must carry; pages of files are not in it."""
    parent: int = 0
    private_bytes: int = 0
    """The anonymous part of that."""


def task(pid: int) -> Task | None:
    """The process, or None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    memory = {"RssAnon": 0, "RssShmem": 0}
    for name in memory:
        with contextlib.suppress(KeyError, ValueError, IndexError):
            memory[name] = int(fields[name].split()[0]) * 1024
    inner = fields.get("NSpid", str(pid)).split()
    return Task(
        pid=pid,
        inner_pid=int(inner[-1]),
        state=fields.get("State", "X").strip()[:1],
        tracer=int(fields.get("TracerPid", "0")),
        resident_bytes=sum(memory.values()),
        parent=int(fields.get("PPid", "0")),
        private_bytes=memory["RssAnon"],
    )


def tasks(pids: Iterable[int]) -> list[Task]:
    return [found for pid in pids if (found := task(pid)) is not None]


def own(found: Iterable[Task], init: int) -> list[Task]:
    """Those that descend from the container's first process: all that a dump has, and a restore brings back.

    The others were put into it from outside, by `docker exec` or as a probe of its health.
    """
    everything = list(found)
    parents = {one.pid: one.parent for one in everything}

    def descends(pid: int) -> bool:
        while pid in parents and pid != init:
            pid = parents[pid]
        return pid == init

    return [one for one in everything if descends(one.pid)]


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start: with the pid, a name that is never used twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rsplit(")", 1)[1].split()[19])


def is_ending(pid: int) -> bool:
    """Whether the process has ended, or is about to: as the first of a pid namespace it waits for the others, and what
    was killed while it was frozen waits for the thaw.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    state, *_, flags = stat.rsplit(")", 1)[1].split()[:7]
    return state in "ZX" or bool(int(flags) & PF_EXITING) or _is_killed(status)


def _is_killed(status: str) -> bool:
    pending = (line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:")))
    return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)


def criu_in(folder: Path) -> list[int]:
    """Every runc, CRIU and script of CRIU's that is at work in a folder: named on the command line, or where it stands.

    `runc checkpoint` is called with it. CRIU is not: it is told over a socket, and goes there.
    """
    return _at_work_in(folder, ("runc", "criu", "hold.sh", "gate.sh"))


def scripts_in(folder: Path, name: str) -> list[int]:
    """Every script of that name that CRIU has called and that is at work in a folder."""
    return _at_work_in(folder, (name,))


def is_at_work_in(process: int, folder: Path, name: str) -> bool:
    """Whether a process is the program of that name that works in a folder."""
    return _is_at_work_in(Path(f"/proc/{process}"), folder, (name,))


def _at_work_in(folder: Path, names: tuple[str, ...]) -> list[int]:
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(process.name) for process in processes if _is_at_work_in(process, folder, names)]


def _is_at_work_in(process: Path, folder: Path, names: tuple[str, ...]) -> bool:
    with contextlib.suppress(OSError):
        if (process / "comm").read_text().startswith(names):
            named = os.fsencode(f"{folder}/") in (process / "cmdline").read_bytes()
            return named or (process / "cwd").readlink().is_relative_to(folder)
    return False  # it has ended meanwhile


@dataclass(frozen=True, slots=True)
class Shim:
    """A containerd-shim, as containerd has called it."""

    pid: int
    address: str
    """containerd's socket."""
    namespace: str


def shims_of(container_id: str) -> list[Shim]:
    """Every shim of a container; one in another pid namespace is somebody who calls himself so. Blocks for a little."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if (process / "comm").read_text().startswith("containerd-shim") and _in_our_namespace(process):
                    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if words[words.index("-id") + 1] == container_id:
                        address, namespace = (words[words.index(name) + 1] for name in ("-address", "-namespace"))
                        found.append(Shim(int(process.name), address, namespace))
    return found


def _in_our_namespace(process: Path) -> bool:
    return (process / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()


def has_ended(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; blocks for so long at most."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([ended], [], [], seconds)[0])
    finally:
        os.close(ended)


def memory_available() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_times() -> tuple[int, int]:
    """Ticks of all processors since boot: how many they were busy, and all of them."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]  # what guests used is in `user` already
    ticks = [int(each) for each in fields]
    idle = ticks[3] + ticks[4]  # waiting for a disk is idle too
    return sum(ticks) - idle, sum(ticks)
