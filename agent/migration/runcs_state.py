"""What runc knows of a restored copy, kept beside it: what it takes for failed it forgets, and dockerd asks it.

That is so where CRIU is killed just as it lets the tasks go: they run, and are whole, but the restore has failed for
runc (before 1.2). dockerd could neither change nor pause nor enter such a container.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.base.errors import DumpFailed
from agent.checkpoint import criu, proc
from agent.doors.handover import HandOver

log = logging.getLogger("agent.target")

WHERE, STATE = "runc-where", "runc-state.json"
RUNC_SECONDS = 30.0
"""A runc whose restore has failed tries for ten seconds to remove cgroups with tasks in them, before it forgets."""


async def see_to(hand_over: HandOver, record: Mapping[str, Any]) -> None:
    """Make sure, when all of the restore has ended, that runc knows of a copy that runs."""
    await hand_over.until_over(RUNC_SECONDS)
    give_back(hand_over.path, record)


def keep(folder: Path, roots: str = criu.RUNC_ROOTS) -> None:
    """Of the container that this hand-over folder is for; CRIU holds its tasks, so runc has written it."""
    with contextlib.suppress(DumpFailed, OSError):  # it is only for the worst case
        found = criu.runc_state(folder.name, roots)
        (folder / STATE).write_bytes(found.read_bytes())
        (folder / WHERE).write_text(str(found))


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
