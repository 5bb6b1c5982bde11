"""A restored copy that CRIU holds, and how it is ended without having run: with the runc and the CRIU that hold it."""

import contextlib
import os
import signal

from agent.base.errors import ContainerGone
from agent.checkpoint import freezer, proc
from agent.checkpoint.freezer import Cgroup
from agent.doors.handover import HandOver, RestoreResult


async def end(hand_over: HandOver, result: RestoreResult) -> None:
    """Make sure that no task of it is left, and no mount that would keep containerd from deleting it."""
    holders = proc.criu_in(hand_over.path)
    group = _cgroup(hand_over.path.name, [result.pid, *holders])
    if result.runc in holders:
        # runc first: it would reap the container's first process, and containerd would never hear of its end
        with contextlib.suppress(ProcessLookupError):
            os.kill(result.runc, signal.SIGKILL)
    await hand_over.unmount_all(killed=True)  # before containerd hears of the end, and deletes runc's folder
    if group is not None:
        await freezer.kill_frozen(group)  # CRIU is in it too


def _cgroup(container_id: str, pids: list[int]) -> Cgroup | None:
    """The container's own, by its name. Of a process that is dead already the kernel says the root, and of runc the
    engine's: neither must be killed.
    """
    for pid in pids:
        with contextlib.suppress(ContainerGone):
            group = freezer.cgroup_of(pid)
            if container_id in group.path.name:
                return group
    return None
