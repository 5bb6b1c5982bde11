"""A container that is removed for good: by dockerd, and then what the engine has left of it.

dockerd removes a container also where containerd could not: it warns, and has forgotten it. That is so where a runc was
killed at its work, or could not delete its folder for a mount in it; the shim and the cgroups would stay for ever.
"""

import asyncio
import contextlib
import logging
import os
import signal

from agent.base.errors import AgentError
from agent.base.shell import Shell
from agent.checkpoint import freezer, proc
from agent.checkpoint.proc import Shim
from agent.doors.docker import Docker
from agent.doors.handover import HandOver

log = logging.getLogger("agent.cleared")

SHIM_SECONDS = 3.0
"""For a shim to end by itself; it does within milliseconds of dockerd's answer."""
CTR_SECONDS = 10.0


async def remove(docker: Docker, shell: Shell, container_id: str) -> None:
    """Make sure that nothing of it is left but its named volumes. All of it has ended, or may be ended."""
    await docker.remove(container_id, force=True, volumes=False)
    await clear(shell, container_id)


async def clear(shell: Shell, container_id: str) -> None:
    """The same of one that dockerd does not have any more."""
    await HandOver(shell, container_id).unmount_all(killed=True)
    await freezer.thaw_empty(container_id)
    shims = await asyncio.to_thread(proc.shims_of, container_id)
    await asyncio.gather(*(_end(shell, shim, container_id) for shim in shims))
    await asyncio.to_thread(freezer.remove_of, container_id)


async def see_to(shell: Shell, container_id: str) -> None:
    """Clear one that somebody else had dockerd remove, if the engine has left anything of it; never with tasks in it.

    It may have ended in the moment in which it was frozen here: runc takes that for paused, and deletes nothing.
    """
    groups = await asyncio.to_thread(freezer.of_container, container_id)
    if groups and not any(group.tasks() for group in groups):
        log.info("%s was removed, but its cgroups were not: they are cleared", container_id[:12])
        try:
            await clear(shell, container_id)
        except AgentError as error:
            log.warning("%s could not be cleared: %s", container_id[:12], error)


async def _end(shell: Shell, shim: Shim, container_id: str) -> None:
    """By containerd's own client, where there is one: then containerd forgets the container too."""
    if await asyncio.to_thread(proc.has_ended, shim.pid, SHIM_SECONDS):
        return
    ctr = ("ctr", "--address", shim.address, "--namespace", shim.namespace)
    with contextlib.suppress(AgentError):  # there is none, or containerd does not answer
        for words in (("tasks", "delete", "--force", container_id), ("containers", "delete", container_id)):
            await shell.run(*ctr, *words, label="ctr", timeout=CTR_SECONDS, check=False)
    if not await asyncio.to_thread(proc.has_ended, shim.pid, SHIM_SECONDS):
        with contextlib.suppress(ProcessLookupError):
            os.kill(shim.pid, signal.SIGKILL)
