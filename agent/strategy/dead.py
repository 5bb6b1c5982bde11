"""A CRIU that dumps what has died waits for ever, for an end that it keeps from coming: it is ended.

Whoever traces a process has to take in the end of each of its threads, and CRIU asks for that of the process alone,
which comes last. Seen where a dump was more than a container's memory limit let it have. Elsewhere nobody may kill a
CRIU at its dump, since it would leave its parasite in the tasks; here none of them is left to be ruined.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path

from agent.checkpoint import freezer, proc

log = logging.getLogger("agent.source")

LOOK_SECONDS = 1.0
"""Between two looks, both of which have to find it dead: a CRIU that has noticed by itself ends sooner."""


async def see_to(folder: Path) -> None:
    """Do so in a folder of a dump, whenever there is one. Goes on for ever."""
    before = False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        dead = await asyncio.to_thread(is_dead, folder)
        if dead and before:
            end(folder)
        before = dead


def is_dead(folder: Path) -> bool:
    """Whether what is dumped there has ended, all of it; blocks for some milliseconds. Not where that is not known."""
    with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
        state = next(folder.glob("*/*/state.json"))  # the shadow of runc's (checkpoint/criu.py)
        first = json.loads(state.read_text())
        pid = int(first["init_process_pid"])
        if proc.start_time(pid) != int(first["init_process_start"]) or proc.is_ending(pid):
            return not any(group.tasks() for group in freezer.of_container(state.parent.name))
    return False


def end(folder: Path) -> None:
    """End CRIU there; runc ends of that by itself."""
    for pid in proc.scripts_in(folder, "criu"):
        log.warning("CRIU (%d) dumps what has died: it is ended", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
