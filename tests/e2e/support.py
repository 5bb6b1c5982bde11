"""An observer outside the agents: what must be true of the hosts after every migration, whatever became of it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from lab import endings
from lab.cluster import Cluster
from lab.host import Host
from lab.shell import PATIENCE
from lab.workloads import Counted, counted
from protocol.base import new_command_id
from protocol.commands import Reply, ReplyKind

WAIT_SECONDS = 30.0


async def until(so: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for something to become true; a bound, and then a failure that says what was missing."""
    end = time.monotonic() + seconds * PATIENCE
    while not await asyncio.to_thread(so):
        assert time.monotonic() < end, f"after {seconds * PATIENCE:g} s still not so: {what}"
        await asyncio.sleep(0.05 * PATIENCE)


async def asked(cluster: Cluster, host: str, kind: type[Any], **fields: Any) -> Reply:
    """The last reply to a new command over MQTT."""
    return await cluster.ask(host, kind(id=new_command_id(), **fields))


async def done(cluster: Cluster, host: str, kind: type[Any], **fields: Any) -> Reply:
    """The same, of one that can't fail."""
    reply = await asked(cluster, host, kind, **fields)
    assert reply.kind is ReplyKind.FINISHED, reply.error
    return reply


async def counts_on(host: Host, name: str, more: int = 20, *, taken_back: int = 0) -> Counted:
    """The counter goes on, and nothing of it is missing or came twice; what it has by then."""

    def look() -> Counted:
        return counted(host, name, taken_back=taken_back)

    base = len(look().logged)
    try:
        await until(lambda: len(look().logged) >= base + more, f"{name} counts on at {host.name}")
        now = look()
        assert now.missing == 0, now
        assert now.duplicated == 0, now
        assert now.in_order, now
    except AssertionError as error:
        raise AssertionError(f"{error}\n{await asyncio.to_thread(endings.of, host, name)}") from None
    return now


ORPHANS = r"""
ids=$(docker ps --all --quiet --no-trunc)
find /sys/fs/cgroup -type d | grep -oE '[0-9a-f]{64}' | sort -u | while read -r id; do
    case "$ids" in *$id*) continue ;; esac
    echo "cgroup of $id"
    find /sys/fs/cgroup -path "*$id*" -name cgroup.procs -exec cat {} + | sort -u | xargs -r ps -o pid,state,args
    docker events --since 1h --until 0s --filter "container=$id" \
        --format '{{.TimeNano}} {{.Action}} {{.Actor.Attributes.name}}' | tail -n 8
done
"""
"""Cgroups of containers that dockerd does not know any more: what is in them, and the last that dockerd has told."""


def leftovers(host: Host) -> list[str]:
    """Whatever a migration may have left: folders, mounts, frozen tasks, locked networks, waiting runtimes."""
    # but for programs of --init, from which containers run that have come here (agent/prework/init.py)
    argv = ["find", "/run/transship", "-mindepth", "2", "-not", "-path", "/run/transship/init/*"]
    found = host.run(argv, check=False).stdout.splitlines()
    mounts = host.run(["cat", "/proc/mounts"]).stdout.splitlines()
    found += [line for line in mounts if line.startswith("transship ")]
    script = (
        "find /sys/fs/cgroup -name freezer.state -exec grep -l FROZEN {} + ; "
        "find /sys/fs/cgroup -name cgroup.freeze -exec grep -l 1 {} + ; "
        "for p in $(docker ps -q); do pid=$(docker inspect -f '{{.State.Pid}}' $p); "
        "nsenter --net=/proc/$pid/ns/net nft list tables | grep transship; "
        "grep -H '^State:.T' /proc/$pid/status; done; "
        "ps -eo args | grep -E '[r]untime/(restore|pages).py|^[^ ]*criu:? '; "
        f"{ORPHANS}"
    )
    found += host.run(["sh", "-c", script], check=False).stdout.splitlines()
    return found


async def clean(cluster: Cluster, *hosts: str, seconds: float = 20.0) -> None:
    """Nothing is left over on these hosts."""
    for name in hosts:
        found: list[str] = ["not looked yet"]

        def looked(host: Host = cluster[name], found: list[str] = found) -> bool:
            found[:] = leftovers(host)
            return not found

        try:
            await until(looked, f"nothing is left on {name}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
