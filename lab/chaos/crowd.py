"""Many containers at once, by as many commands or by one evacuation: no more at a time than the host takes, none lost,
doubled or left behind.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass

from lab.chaos.inspect_host import debris, leftovers
from lab.chaos.journals import JournalReader
from lab.cluster import Cluster, migration
from lab.host import Host
from lab.shell import PATIENCE, LabError
from lab.workloads import counted, run_counter
from protocol.base import new_command_id
from protocol.commands import Cordon, Evacuate, ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.evacuation import EvacueeState

PREFIX = "crowd"
SECONDS = 400.0 * PATIENCE
LEFT_SECONDS = 20.0 * PATIENCE
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Crowd:
    """How it came out."""

    containers: int
    busy: int
    """Commands beyond the limit, each refused untouched and given again."""
    seconds: float
    wrong: tuple[str, ...]
    together: int = 0
    """How many moves were seen open at once in the source's journal, at most; 0: not looked at."""


def names(count: int) -> list[str]:
    return [f"{PREFIX}-{number:02}" for number in range(count)]


def start(host: Host, count: int) -> None:
    for name in names(count):
        run_counter(host, name, "--restart", "always", mib=1, pause=0.2)


async def moved(cluster: Cluster, source: str, target: str, count: int, *, together: int, limit: int) -> Crowd:
    """All of it: made, moved, looked at, removed."""
    try:
        await asyncio.to_thread(start, cluster[source], count)
        return await move(cluster, source, target, count, together, limit)
    finally:
        await asyncio.to_thread(remove, cluster, count)


async def move(cluster: Cluster, source: str, target: str, count: int, together: int, limit: int) -> Crowd:
    """Give a command for each container, `together` at a time; what is refused as Busy is given again.

    Raises:
        LabError: a move failed, or was refused for another reason.

    """
    waiting = asyncio.Semaphore(together)
    refused = itertools.count()

    async def one(name: str) -> None:
        async with waiting:
            while True:
                reply = await cluster.ask(source, migration(name, target))
                if reply.kind is ReplyKind.FINISHED:
                    return
                if reply.error is None or reply.error.code is not ErrorCode.BUSY:
                    raise LabError(f"{name}: {reply.error}")
                if reply.error.consequence is not Consequence.UNTOUCHED:
                    raise LabError(f"{name} was touched, though it was refused: {reply.error}")
                next(refused)
                await asyncio.sleep(0.2)

    began = time.monotonic()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(one(name) for name in names(count)))
    seconds = time.monotonic() - began
    busy = next(refused)
    wrong = [] if busy or together <= limit else [f"{together} commands at once, and none beyond {limit} was refused"]
    return Crowd(count, busy, seconds, (*wrong, *await asyncio.to_thread(check, cluster, source, target, count)))


async def evacuated(cluster: Cluster, source: str, target: str, count: int, *, limit: int) -> Crowd:
    """The same by one command of the product's, which keeps to the limit by itself."""
    try:
        await asyncio.to_thread(start, cluster[source], count)
        return await evacuate(cluster, source, target, count, limit)
    finally:
        await cluster.ask(source, Cordon(id=new_command_id(), cordoned=False))
        await asyncio.to_thread(remove, cluster, count)


async def evacuate(cluster: Cluster, source: str, target: str, count: int, limit: int) -> Crowd:
    """Empty the source, and look at its journal meanwhile."""
    began, most = time.monotonic(), 0
    reader = JournalReader(cluster[source])
    asking = asyncio.create_task(
        cluster.ask(source, Evacuate(id=new_command_id(), to=(target,), parallel=limit)), name="evacuate"
    )
    try:
        async with asyncio.timeout(SECONDS):
            while not asking.done():
                most = max(most, sum(role == "source" for _, role, _ in reader.unfinished()))
                await asyncio.wait({asking}, timeout=LOOK_SECONDS)
    finally:
        asking.cancel()
        reader.close()
    seconds, reply = time.monotonic() - began, asking.result()
    rows = reply.evacuation.containers if reply.evacuation else ()
    wrong = [f"{one.container}: {one.state}, {one.error}" for one in rows if one.state is not EvacueeState.MOVED]
    if len(rows) != count or reply.kind is not ReplyKind.FINISHED:
        wrong.append(f"{len(rows)} containers in an evacuation of {count}: {reply.kind}, {reply.error}")
    if not 1 < most <= limit:
        wrong.append(f"{most} moves at once where {limit} were asked for")
    left_over = await asyncio.to_thread(check, cluster, source, target, count)
    return Crowd(count, 0, seconds, (*wrong, *left_over), most)


def check(cluster: Cluster, source: str, target: str, count: int) -> list[str]:
    """Each is at the target, once, and has counted on without a gap."""
    there = cluster[target].docker("ps", "--format", "{{.Names}}").split()
    here = cluster[source].docker("ps", "--all", "--format", "{{.Names}}").split()
    wrong = [f"left: {what}" for host in (source, target) for what in left(cluster[host])]
    wrong += [f"{name} does not run at {target}" for name in names(count) if name not in there]
    wrong += [f"{name} is still at {source}" for name in names(count) if name in here]
    for name in names(count):
        if name in there:
            found = counted(cluster[target], name)
            if found.missing or found.duplicated or not found.in_order or not found.written:
                wrong.append(f"{name}: {found.missing} missing, {found.duplicated} twice, {len(found.written)} written")
    return wrong


def left(host: Host) -> list[str]:
    """What the moves have left behind, a while after the last one has ended."""
    end = time.monotonic() + LEFT_SECONDS
    while True:
        found = [one for one in leftovers(host) if f"container {PREFIX}-" not in one]
        found += [f"dockerd's folder of {one[:12]}, half made" for one in debris(host) or ()]  # none was killed here
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def remove(cluster: Cluster, count: int) -> None:
    for host in cluster.lab.hosts.values():
        host.docker("rm", "--force", *names(count), check=False)
