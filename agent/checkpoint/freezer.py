"""The container's cgroup: freeze it, thaw it, count its tasks, end it while frozen. cgroup v1 and v2.

The freezer's file is written directly: `docker pause` takes ten times as long, and dockerd would show the pause.
"""

import asyncio
import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import ContainerGone, FreezeFailed

CGROUP_ROOT = Path("/sys/fs/cgroup")
CONTAINER_ID = re.compile("[0-9a-f]{64}")
V1_POLL_SECONDS = 0.0005
"""The v1 freezer has no event; reading its state is what makes the kernel look again."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where the kernel keeps a container's tasks."""

    path: Path
    version: int

    def exists(self) -> bool:
        return self.path.is_dir()

    def tasks(self) -> list[int]:
        """Process ids, host view, of this cgroup and those below it; empty if it is gone."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError):
                found += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
        return sorted(found)

    def is_frozen(self) -> bool:
        with contextlib.suppress(OSError):
            if self.version == 1:
                return (self.path / "freezer.state").read_text().strip() == "FROZEN"
            return "frozen 1" in (self.path / "cgroup.events").read_text()
        return False


def cgroup_of(pid: int) -> Cgroup:
    """The freezer's cgroup of a process.

    Raises:
        ContainerGone: there is no such process; or it is dead, for then the kernel says the root, which is everybody's.

    """
    dead = ContainerGone(f"process {pid} is in no cgroup of a container")
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        raise ContainerGone(f"process {pid} is gone") from None
    unified = ""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer" and (CGROUP_ROOT / "freezer").is_dir():  # a kernel may have both, a host only v2
            if path == "/":
                raise dead
            return Cgroup(CGROUP_ROOT / "freezer" / path.lstrip("/"), 1)
        if not controllers:
            unified = path
    if unified in ("", "/"):
        raise dead
    return Cgroup(CGROUP_ROOT / unified.lstrip("/"), 2)


def of_container(container_id: str) -> list[Cgroup]:
    """The freezer's cgroups that bear a container's id, whoever knows of them still; blocks for some milliseconds."""
    version = 1 if (CGROUP_ROOT / "freezer").is_dir() else 2
    root = CGROUP_ROOT / "freezer" if version == 1 else CGROUP_ROOT
    return [Cgroup(path, version) for path in _folders_of(container_id, root) if container_id in path.name]


def remove_of(container_id: str) -> None:
    """Make sure that no empty cgroup of a container is left, in any hierarchy; blocks for some milliseconds."""
    for path in sorted(_folders_of(container_id, CGROUP_ROOT), reverse=True):  # what is inside comes first
        with contextlib.suppress(OSError):
            path.rmdir()


def _folders_of(container_id: str, root: Path) -> list[Path]:
    if not CONTAINER_ID.fullmatch(container_id):  # less than that would be others' as well
        return []
    return [Path(folder) for folder, _, _ in os.walk(root) if container_id in folder]


def freezing(group: Cgroup) -> tuple[Path, str]:
    """The file that freezes it, and what is to be written there."""
    return (group.path / "freezer.state", "FROZEN") if group.version == 1 else (group.path / "cgroup.freeze", "1")


async def freeze(group: Cgroup, seconds: float) -> None:
    """Freeze, and return when the last task is.

    Raises:
        FreezeFailed: not all were frozen in time, or the cgroup is gone; it may be left half frozen, so thaw it.

    """
    file, word = freezing(group)
    try:
        file.write_text(word)
        if group.version == 1:
            await _until(group.is_frozen, seconds, _pause)
        else:
            await asyncio.to_thread(_wait_for_event, group, seconds)
    except OSError as error:
        raise FreezeFailed(f"the container's cgroup can't be frozen: {error}") from error


async def _pause() -> None:
    await asyncio.sleep(V1_POLL_SECONDS)


async def _until(so: Callable[[], bool], seconds: float, between: Callable[[], Awaitable[None]]) -> None:
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            raise FreezeFailed(
                f"not every task froze within {seconds:g} s",
                hint="a task is in an uninterruptible sleep (state D), often on a slow disk or NFS",
            )
        await between()


def _wait_for_event(group: Cgroup, seconds: float) -> None:
    end = time.monotonic() + seconds
    with (group.path / "cgroup.events").open() as events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while not group.is_frozen():
            left = end - time.monotonic()
            if left <= 0 or not group.exists():
                raise FreezeFailed(
                    f"not every task froze within {seconds:g} s",
                    hint="a task is in an uninterruptible sleep (state D), often on a slow disk or NFS",
                )
            events.seek(0)
            events.read()
            poller.poll(min(left, 1.0) * 1000)


async def thaw(group: Cgroup) -> None:
    """Make sure that the cgroup is not frozen; one that is gone is not."""
    thaw_now(group)


def thaw_now(group: Cgroup) -> None:
    """The same, for threads of their own."""
    with contextlib.suppress(FileNotFoundError, OSError):
        if group.version == 1:
            (group.path / "freezer.state").write_text("THAWED")
        else:
            (group.path / "cgroup.freeze").write_text("0")


async def thaw_if_empty(group: Cgroup) -> None:
    """Make sure that it is not frozen with nothing in it: runc takes it for paused, and does not delete it."""
    if freezing(group)[0].exists() and not group.tasks():
        await thaw(group)


async def thaw_empty(container_id: str) -> None:
    """The same of all cgroups of a container."""
    for group in await asyncio.to_thread(of_container, container_id):
        await thaw_if_empty(group)


async def kill_frozen(group: Cgroup, seconds: float = 10.0) -> None:
    """End every task without letting it run another instruction.

    The signal is pending when the thaw comes, and a task with a pending SIGKILL does not return to user space. On
    cgroup v1 a frozen task can't even die before the thaw; on v2 it can.

    Raises:
        ContainerGone: it is not a container's cgroup at all, since this agent is in it.

    """
    if os.getpid() in group.tasks():
        raise ContainerGone(f"{group.path} is not a container's")
    for pid in group.tasks():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await thaw(group)
    end = time.monotonic() + seconds
    while (left := group.tasks()) and time.monotonic() < end:
        for pid in left:  # one that was forked between the list and the kill
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
