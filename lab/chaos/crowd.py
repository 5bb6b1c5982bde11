"""Many containers by as many commands: no more at once than the host takes, none lost, doubled or left behind."""

import asyncio
import itertools
import time
from dataclasses import dataclass

from lab.chaos.inspect_host import leftovers
from lab.cluster import Cluster, migration
from lab.host import Host
from lab.shell import LabError
from lab.workloads import counted, run_counter
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode

PREFIX = "crowd"
SECONDS = 400.0
LEFT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """How it came out."""

    containers: int
    busy: int
    """Commands beyond the limit, each refused untouched and given again."""
    seconds: float
    wrong: tuple[str, ...]


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
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def remove(cluster: Cluster, count: int) -> None:
    for host in cluster.lab.hosts.values():
        host.docker("rm", "--force", *names(count), check=False)
