"""Post-copy when something breaks: not decided, it is taken back; else it goes on where it stopped, and what is lost is
said to be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.runtime import handover
from agent.strategy.dump import DUMPS
from lab.cluster import Cluster
from lab.host import Host
from lab.shell import PIPE
from protocol.commands import Resolve
from protocol.errors import ErrorCode
from tests.e2e.archives import policy
from tests.e2e.keeper import arrives, hashes, keeper, names, remembers, running
from tests.e2e.support import clean, done, until

A, B = "a28", "b26"


async def test_the_link_breaks_in_the_middle_and_it_goes_on(moves: Cluster) -> None:
    name = "broken-link"
    async with keeper(moves, name, source=A, others=(B,)) as digest, running(moves, name, A, B) as move:
        moves.lab.cut(B)
        await until(lambda: unlinked(moves), "the source has noticed", 60)
        assert name in names(moves[A])
        await arrives(moves, move, name, A, B, digest)


def unlinked(moves: Cluster) -> bool:
    """Whether the page channel's link has broken, by the source's own word."""
    last = moves[A].agent_log().rpartition("running as source")[2]
    return "the page channel's link has ended" in last or "linking the page channel has failed" in last


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("side", [A, B])
async def test_an_agent_is_away_while_pages_are_missing(moves: Cluster, side: str, how: str) -> None:
    """The page channel's ends outlive it, and the container only waits."""
    name = f"orphan-{side}"
    async with keeper(moves, name, "--restart", "always", source=A, others=(B,)) as digest:
        async with running(moves, name, A, B):
            moves[side].kill_agent() if how == "killed" else moves[side].stop_agent()
            assert name in names(moves[A])
            moves.lab.heal(B)
            moves[side].start_agent()
        await moves.until_ready()
        await until(lambda: name not in names(moves[A]), "the source has let go of it", 60)
        await remembers(moves[B], name, digest)
        await until(lambda: policy(moves[B], name) == "always", "the target has finished", 60)
        await clean(moves, A, B)


def criu_dies(host: Host, place: str) -> None:
    """The CRIU that is at work in a folder of ours, by its number."""
    script = (
        'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = criu ] || continue; '
        'case "$(readlink $p/cwd) $(tr "\\0" " " <$p/cmdline)" in *"$0"*) echo "${p#/proc/}";; esac; done 2>/dev/null'
    )
    [first, *_] = host.run(["sh", "-c", script, place]).stdout.split()
    host.run(["kill", "-KILL", first])


def daemon_dies(moves: Cluster) -> None:
    criu_dies(moves[B], handover.ROOT)


def page_server_dies(moves: Cluster) -> None:
    criu_dies(moves[A], str(DUMPS))


async def test_a_source_whose_criu_dies_while_it_is_restored_does_not_wait_in_vain(moves: Cluster) -> None:
    """Nothing is decided: it runs on at the source at once, though the target does not answer."""
    name = "in-vain"

    async with keeper(moves, name, "--restart", "always", source=A, others=(B,), mib=64) as digest:
        async with moves.moving(name, A, B, strategy="postcopy") as move:
            await until(lambda: bool(runc(moves[B])), "the target is staged")
            moves[B].run(["kill", "-STOP", *runc(moves[B])])
            await until(lambda: restoring(moves[B], move.id), "the target restores")
            page_server_dies(moves)
            try:
                await remembers(moves[A], name, digest, taken_back=1)
            finally:
                moves[B].run(["kill", "-CONT", *runc(moves[B])], check=False)
            end = await move.end()
        assert end.error is not None
        assert end.error.code is ErrorCode.DUMP_FAILED, end.error
        assert (policy(moves[A], name), name in names(moves[B])) == ("always", False)
        await clean(moves, A, B)


def runc(host: Host) -> list[str]:
    """Those that wait for a restore, or are at it."""
    return host.run(["pgrep", "-f", "[r]estore --detach --image-path"], check=False).stdout.split()


def restoring(host: Host, migration: str) -> bool:
    return f"{migration} restoring as target" in host.agent_log()


HOLD = """
import sqlite3, sys
sqlite3.connect("/var/lib/transship/journal.sqlite", isolation_level=None).execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
"""Keeps an agent from writing its journal, until its input ends."""


@contextmanager
def undecided(host: Host) -> Iterator[None]:
    with host.popen(["python3", "-c", HOLD], stdin=PIPE, stdout=PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


def channels_end_dies(moves: Cluster) -> None:
    [pid] = moves[A].run(["pgrep", "-f", f"[p]ages.py {DUMPS}/"]).stdout.split()
    moves[A].run(["kill", "-KILL", pid])


@pytest.mark.parametrize("breaks", [page_server_dies, channels_end_dies])
async def test_what_can_not_be_served_any_more_is_not_decided(
    moves: Cluster, breaks: Callable[[Cluster], None]
) -> None:
    """The target has proved its copy, and the source is about to decide."""
    name = "not-served"
    async with keeper(moves, name, source=A, others=(B,), mib=64) as digest:
        async with moves.moving(name, A, B, strategy="postcopy") as move:
            await until(lambda: bool(runc(moves[B])), "the target is staged")
            moves[B].run(["kill", "-STOP", *runc(moves[B])])
            await until(lambda: restoring(moves[B], move.id), "the target restores")
            with undecided(moves[A]):
                moves[B].run(["kill", "-CONT", *runc(moves[B])])
                await until(lambda: f"{move.id} prepared as target" in moves[B].agent_log(), "it is proved")
                breaks(moves)
            end = await move.end()
        assert end.error is not None
        assert end.error.code is ErrorCode.DUMP_FAILED, end.error
        await remembers(moves[A], name, digest, taken_back=1)
        assert name not in names(moves[B])
        await clean(moves, A, B)


@pytest.mark.parametrize("breaks", [daemon_dies, page_server_dies])
async def test_memory_that_can_not_come_any_more_is_said_to_be_lost(
    moves: Cluster, breaks: Callable[[Cluster], None]
) -> None:
    """Nothing hides it, no zeros stand in for it, and what is left is kept until a person lets go of it."""
    name = "unlucky"
    async with keeper(moves, name, "--restart", "always", source=A, others=(B,)) as digest:
        async with running(moves, name, A, B) as move:
            breaks(moves)
            await move.until_error(ErrorCode.LOST)
            assert name in names(moves[A])
            await until(lambda: is_held(moves), "what lacks its memory does not run", 30)
            await done(moves, A, Resolve, migration=move.id, decision="commit")
            end = await move.end()
            assert end.error is not None
            assert end.error.code is ErrorCode.LOST, "it is no success, also when a person has let go of it"
        assert name not in names(moves[A])
        await until(lambda: len(set(hashes(moves[B], name))) == 2, "its restart policy has started it anew")
        assert hashes(moves[B], name)[0] == digest
        await clean(moves, A, B)


def is_held(moves: Cluster) -> bool:
    script = "find /sys/fs/cgroup -name freezer.state -exec grep -l FROZEN {} +"
    return "docker" in moves[B].run(["sh", "-c", script], check=False).stdout


async def test_a_source_that_is_rebooted_has_lost_it_and_says_so(moves: Cluster) -> None:
    name = "rebooted"
    async with keeper(moves, name, "--restart", "always", source=A, others=(B,)):
        async with running(moves, name, A, B) as move:
            moves[A].reboot()
            moves[A].start_agent()
            await moves.until_ready()
            await move.until_error(ErrorCode.LOST)
            await done(moves, A, Resolve, migration=move.id, decision="commit")
        assert name not in names(moves[A])
        await until(lambda: len(set(hashes(moves[B], name))) == 2, "its restart policy has started it anew")
        await clean(moves, A, B)


async def test_a_source_that_never_comes_back_leaves_it_to_a_person_at_the_target(moves: Cluster) -> None:
    name = "left-alone"
    async with keeper(moves, name, "--restart", "always", source=A, others=(B,)):
        async with running(moves, name, A, B) as move:
            moves[A].kill_agent()
            moves.lab.heal(B)
            await done(moves, B, Resolve, migration=move.id, decision="commit")
            await until(lambda: len(set(hashes(moves[B], name))) == 2, "its restart policy has started it anew")
            moves[A].start_agent()
        await moves.until_ready()
        await until(lambda: name not in names(moves[A]), "the source has heard of it, and lets go", 60)
        await clean(moves, A, B)
