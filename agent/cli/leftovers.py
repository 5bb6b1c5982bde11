"""What is left on a host of moves that have ended: folders of nobody, frozen containers, locked networks.

The journal says which moves have not ended; what is theirs is in use. Folders of others are removed by `clear`. What is
frozen or locked is only named: it may be the only copy, or one too many, and no machine can tell which.
"""

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.base.errors import AgentError
from agent.base.shell import Shell
from agent.checkpoint import freezer
from agent.cli.checks import Finding, doubtful, good, missing
from agent.doors.tmpfs import unmount
from agent.migration.journal import Entry, Journal
from agent.network import lock
from agent.runtime import asleep, handover
from agent.strategy.dump import DUMPS

WHAT: Final = "leftovers"
IMAGES: Final = "images"


async def look(shell: Shell, state: Path) -> list[Finding]:
    """Everything of nobody."""
    try:
        entries = await _unfinished(state)
    except Exception as error:  # whatever a damaged file makes of it
        return [missing(WHAT, f"the journal can't be read: {error}", "look at the agent's log")]
    found = []
    if folders := orphans(entries):
        names = ", ".join(str(folder) for folder in folders)
        found.append(doubtful(WHAT, f"of no move that goes on: {names}", "`transship doctor --fix` removes them"))
    for container_id in await _frozen(shell, entries):
        message = f"container {container_id[:12]} is frozen or without its network, and no move of it goes on"
        hint = "see `transship migrations` on both hosts: if no other copy of it runs, `docker restart` it"
        found.append(missing(WHAT, message, hint))
    return found or [good(WHAT, "none")]


async def _unfinished(state: Path) -> list[Entry]:
    file = state / "journal.sqlite"
    if not file.exists():
        return []
    journal = Journal(file)
    await journal.open()
    try:
        return await journal.unfinished()
    finally:
        await journal.close()


def orphans(entries: Iterable[Entry], dumps: Path = DUMPS, handovers: Path = Path(handover.ROOT)) -> list[Path]:
    """Folders of dumps by their migration, and of hand-overs by their container, that no open move has."""
    known = list(entries)
    migrations = {entry.id for entry in known}
    containers = {str(entry.record.get("container_id", "")) for entry in known}
    found = [each for each in _inside(dumps) if each.name not in migrations]
    sleeping = {each.name.partition(".")[0] for each in _inside(Path(asleep.ROOT))}  # what is being woken has one, too
    return found + [each for each in _inside(handovers) if each.name not in containers | sleeping]


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


async def clear(shell: Shell, state: Path) -> list[str]:
    """Remove the folders of nobody; what was done."""
    did = []
    for folder in orphans(await _unfinished(state)):
        await unmount(shell, folder / IMAGES)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        did.append(f"{folder} removed: no move that goes on has it")
    return did


async def _frozen(shell: Shell, entries: Iterable[Entry]) -> list[str]:
    """Running containers that are held by nothing that dockerd or the journal knows of."""
    moving = {str(entry.record.get("container_id", "")) for entry in entries}
    try:
        listed = await shell.run("docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.State}}", timeout=30.0)
    except AgentError:
        return []  # dockerd does not answer: said elsewhere
    rows = [line.split() for line in listed.stdout.splitlines()]
    running = [row[0] for row in rows if row[1:] == ["running"] and row[0] not in moving]
    return [container_id for container_id in running if await _is_held(shell, container_id)]


async def _is_held(shell: Shell, container_id: str) -> bool:
    for group in freezer.of_container(container_id):
        tasks = group.tasks()
        if tasks and (group.is_frozen() or await _is_locked(shell, tasks[0])):
            return True
    return False


async def _is_locked(shell: Shell, pid: int) -> bool:
    try:
        return await lock.is_locked(shell, pid)
    except AgentError:
        return False
