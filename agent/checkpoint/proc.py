"""What /proc says: of a container's tasks, of a CRIU at work, of this host's memory."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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
    nested: bool
    """Whether it is in a pid namespace below the one that is looked from: the container's own, and no helper."""
    resident_bytes: int
    """Anonymous and shared memory in RAM, which a dump must carry; pages of files are not in it."""


def task(pid: int) -> Task | None:
    """The process, or None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    resident = 0
    for name in ("RssAnon", "RssShmem"):
        with contextlib.suppress(KeyError, ValueError, IndexError):
            resident += int(fields[name].split()[0]) * 1024
    inner = fields.get("NSpid", str(pid)).split()
    return Task(
        pid=pid,
        inner_pid=int(inner[-1]),
        state=fields.get("State", "X").strip()[:1],
        tracer=int(fields.get("TracerPid", "0")),
        nested=len(inner) > 1,
        resident_bytes=resident,
    )


def tasks(pids: Iterable[int]) -> list[Task]:
    return [found for pid in pids if (found := task(pid)) is not None]


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start: with the pid, a name that is never used twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rsplit(")", 1)[1].split()[19])


def criu_in(folder: Path) -> list[int]:
    """Every runc and CRIU that is at work in a folder: it is named on the command line, or is where they stand.

    `runc checkpoint` is called with it. CRIU is not: it is told over a socket, and goes there.
    """
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_criu_in(entry, folder)]


def _is_criu_in(process: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        if (process / "comm").read_text().startswith(("runc", "criu")):
            named = os.fsencode(f"{folder}/") in (process / "cmdline").read_bytes()
            return named or (process / "cwd").readlink().is_relative_to(folder)
    return False  # it has ended meanwhile


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
