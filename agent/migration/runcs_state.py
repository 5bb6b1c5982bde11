"""What runc knows of a restored copy, kept beside it, and the end of runc: what it takes for failed it ends or forgets.

That is so where CRIU is killed just as it lets the tasks go, or where runc can't write its last file then: they run,
and are whole, but the restore has failed for runc. It kills the first process, has systemd end what is in the scope, or
(before 1.2) forgets it, and dockerd could neither change nor pause nor enter it. So runc is ended as soon as CRIU holds
the tasks. It has noted all that it will by then, and CRIU, which has asked it before the hold, goes on without it
(cr-restore.c: what fails after `pre-resume` is only logged). containerd's shim is the tasks' parent from then on, as
after any end of runc's.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.base.errors import AgentError, DumpFailed
from agent.base.shell import Shell
from agent.base.tasks import readable
from agent.checkpoint import criu, proc
from agent.doors.handover import ROOT, HandOver

log = logging.getLogger("agent.target")

WHERE, STATE = "runc-where", "runc-state.json"
RUNC_SECONDS = 30.0
"""A runc whose restore has failed tries for ten seconds to remove cgroups with tasks in them, before it forgets."""

END_SECONDS = 1.0
"""For a runc that was killed to be gone; it does nothing more in any case."""


async def take_over(shell: Shell, folder: Path, runc: int) -> None:
    """Keep what runc knows of a copy that CRIU holds, and make sure that runc does nothing more about it.

    Its mount goes first: of what is deleted through that, by whoever clears runc's folder, nothing would come back.
    A precaution: where it can't be had runc is left alone, and the move goes on.
    """
    if not keep(folder):
        return
    with contextlib.suppress(AgentError):
        root = Path((folder / WHERE).read_text()).with_name(ROOT)
        await shell.run("umount", "--lazy", str(root), label="umount", timeout=END_SECONDS, check=False)
        if not root.is_mount():
            await _end(folder, runc)


async def _end(folder: Path, runc: int) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        process = os.pidfd_open(runc)  # before it is looked at: its number may be another's by then
        try:
            if proc.is_at_work_in(runc, folder, "runc"):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                async with asyncio.timeout(END_SECONDS):
                    await readable(process)
        finally:
            os.close(process)


async def see_to(hand_over: HandOver, record: Mapping[str, Any]) -> None:
    """Make sure, when all of the restore has ended, that runc knows of a copy that runs."""
    await hand_over.until_over(RUNC_SECONDS)
    give_back(hand_over.path, record)


def keep(folder: Path, roots: str = criu.RUNC_ROOTS) -> bool:
    """Of the container that this hand-over folder is for; CRIU holds its tasks, so runc has written it. Whether it is
    there: it is only for the worst case.
    """
    with contextlib.suppress(DumpFailed, OSError):
        found = criu.runc_state(folder.name, roots)
        (folder / STATE).write_bytes(found.read_bytes())
        (folder / WHERE).write_text(str(found))
        return True
    return False


def give_back(folder: Path, record: Mapping[str, Any]) -> None:
    """Make sure that runc knows of the copy, if that is there still. Nobody of the restore is at work any more."""
    with contextlib.suppress(OSError):
        where = Path((folder / WHERE).read_text())
        if where.exists() or proc.start_time(int(record["pid"])) != record["pid_start"]:
            return
        log.warning("runc has taken the restore of %s for failed: it is told that it runs", folder.name[:12])
        where.parent.mkdir(mode=0o711, exist_ok=True)
        part = where.with_name("state.json.part")
        part.write_bytes((folder / STATE).read_bytes())
        part.chmod(0o600)
        part.rename(where)
