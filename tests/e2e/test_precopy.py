"""Pre-copy: rounds while it runs, a small rest frozen; and each way out for what writes faster than the link carries.

For a kernel that marks written memory: `./scripts/test vm` runs some of it in an emulated machine (docs/lab.md).
TRANSSHIP_PRECOPY_MIB is the memory of the container that writes little.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from agent.checkpoint import dirty
from lab.cluster import Cluster, Moving
from lab.host import Host
from lab.shell import PATIENCE
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.status import ENDED, MigrationStatus
from tests.e2e.support import clean, until
from tests.e2e.waiting import sleeps, start_sleep

pytestmark = pytest.mark.skipif(
    not dirty.written_bytes(Path("/proc/self")), reason="this kernel does not mark written memory (mem_dirty_track)"
)
A, B = "a26", "b28"
MIB = int(os.environ.get("TRANSSHIP_PRECOPY_MIB", "64"))
SLOW = {"compress": "none", "max_blackout_ms": int(1500 + 700 * PATIENCE)}
"""Less than all that is written takes on the link, and more than what no memory changes, however that is predicted."""
LINK = "20mbit"
# Each sweep looks whether a page has what the sweep before it wrote there: one that is older, or newer, is told.
SWEEPER = """
import time
ballast = bytearray({mib} << 20)
for page in range({mib} << 8):
    ballast[page << 12] = page & 255
    ballast[(page << 12) + 1] = 1
number, hot, cold = 0, range(0, {hot} << 12, 4096), range({hot} << 12, {mib} << 20, 1 << 16)
for at in hot:
    ballast[at] = 0
while True:
    number += 1
    was, now = (number - 1) & 255, number & 255
    for at in hot:
        if ballast[at] != was:
            print("broken", at, ballast[at], was, flush=True)
        ballast[at] = now
        if {work}:
            end = time.process_time() + {work}
            while 0 < end - time.process_time() <= {work}:  # which begins anew where it is restored
                pass
    if any(ballast[at] != at >> 12 & 255 or not ballast[at + 1] for at in cold):
        print("broken", flush=True)
    print(number, flush=True)
    time.sleep({pause})
"""


@asynccontextmanager
async def sweeper(
    moves: Cluster, name: str, *, mib: int, hot_mib: float, pause: float, work: float = 0
) -> AsyncIterator[None]:
    """A container that writes to a part of its memory again and again, and knows what must be there.

    `work`: so many seconds of the processor go into each page.
    """
    host = moves[A]
    host.ensure_image("py")
    program = SWEEPER.format(mib=mib, hot=int(hot_mib * 256), pause=pause, work=work)
    # it writes with whatever of the processor is left, or an emulated machine has nothing for the agents
    host.docker("run", "-d", "--name", name, "--cpu-shares", "64", "py", "python3", "-c", program)
    try:
        await sweeps_on(host, name)
        yield
    finally:
        for each in (A, B):
            moves[each].docker("rm", "--force", name, check=False)


async def sweeps_on(host: Host, name: str, more: int = 3) -> None:
    """It goes on, no number of it is missing or came twice, and its memory is what it wrote."""

    def said() -> list[str]:
        return host.docker("logs", name).splitlines()

    before = len(said())
    await until(lambda: len(said()) >= before + more, f"{name} goes on at {host.name}", 60)
    lines = said()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]


def allowed(host: Host, name: str) -> str:
    """What the kernel lets it have of the processors."""
    script = 'cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/$0/cgroup)/cpu.max"'
    return host.run(["sh", "-c", script, host.docker("inspect", "-f", "{{.State.Pid}}", name)]).stdout.strip()


@contextmanager
def slow_link(moves: Cluster) -> Iterator[None]:
    moves.lab.slow(B, LINK)
    try:
        yield
    finally:
        moves.lab.heal(B)


async def in_round(move: Moving, number: int) -> MigrationStatus:
    """Wait until the images of a round are on their way."""
    async for status in move.changes():
        if status.part == f"images:{number}" or status.phase in ENDED:
            return status
    raise AssertionError("it has ended without a word")


async def test_auto_takes_it_where_cold_would_take_too_long(moves: Cluster) -> None:
    """The first of these: what pre-copy adds to the blackout here is known by nothing yet."""
    name, limit = "chosen", int(1500 + 500 * PATIENCE)
    async with sweeper(moves, name, mib=160, hot_mib=1, pause=0.02):
        reply = await moves.migrate(name, A, B, compress="none", max_blackout_ms=limit)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        report = reply.report
        assert report is not None
        print(report.reason, *report.rounds, report.predicted_blackout_ms, report.blackout_ms, sep="\n")
        assert report.strategy == "precopy", report.reason
        assert "; cold would take" in report.reason
        assert (report.predicted_blackout_ms or 0) <= limit
        assert report.rounds[-1].predicted_ms <= limit
        assert report.rounds[0].bytes > 160 << 20
        assert report.frozen_memory_bytes <= (160 << 20) / 10
        await sweeps_on(moves[B], name)
        await clean(moves, A, B)


async def test_auto_refuses_what_is_seen_to_write_too_much(moves: Cluster) -> None:
    """Before anything is begun; what it writes is looked at for a second."""
    name = "not-chosen"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0):
        reply = await moves.migrate(name, A, B, compress="none", max_blackout_ms=600)
        assert reply.error is not None
        print(reply.error.message, reply.error.hint, sep="\n")
        assert reply.error.code is ErrorCode.BLACKOUT_TOO_LONG, reply.error
        assert reply.error.consequence is Consequence.UNTOUCHED
        assert "precopy would take" in reply.error.message
        assert "--throttle" in reply.error.hint
        await sweeps_on(moves[A], name)
        await clean(moves, A, B)


async def test_of_one_that_writes_little_only_a_little_is_left_for_the_freeze(moves: Cluster) -> None:
    name = "writes-little"
    async with sweeper(moves, name, mib=MIB, hot_mib=1, pause=0.02):
        reply = await moves.migrate(name, A, B, strategy="precopy")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        report = reply.report
        assert report is not None
        print(report.model_dump_json(indent=1, include={"rounds", "blackout_ms", "frozen_memory_bytes", "parts"}))
        assert [one.number for one in report.rounds] == list(range(1, len(report.rounds) + 1))
        assert report.rounds[0].bytes > MIB << 20
        assert report.frozen_memory_bytes <= (MIB << 20) / 10
        assert name not in moves[A].docker("ps", "--all", "--format", "{{.Names}}").split()
        await sweeps_on(moves[B], name)
        await clean(moves, A, B)


@pytest.mark.parametrize("throttle", [0, 30], ids=["full-speed", "slowed"])
async def test_what_writes_faster_than_the_link_runs_on_where_nothing_helps(moves: Cluster, throttle: int) -> None:
    """It is told what the blackout would have been; and it is not slowed down any more."""
    name = "given-up"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0):
        with slow_link(moves):
            reply = await moves.migrate(name, A, B, strategy="precopy", throttle=throttle, **SLOW)
        assert reply.error is not None
        assert reply.error.code is ErrorCode.NOT_CONVERGING, reply.error
        assert reply.error.consequence is Consequence.TAKEN_BACK
        assert "ms predicted" in reply.error.message
        assert reply.report is not None
        assert max(one.throttled for one in reply.report.rounds) == throttle
        print(reply.error.message, *reply.report.rounds, sep="\n")
        assert allowed(moves[A], name) == "max 100000"
        await sweeps_on(moves[A], name)
        await clean(moves, A, B)


async def test_it_is_slowed_down_until_the_rest_fits(moves: Cluster) -> None:
    """Unhindered it writes up to 13 MB/s, of which the link carries a fifth; with 1 % of that a hundredth."""
    name = "slowed-down"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0, work=0.0003):
        with slow_link(moves):
            reply = await moves.migrate(name, A, B, strategy="precopy", throttle=99, **SLOW)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert reply.report is not None
        print(*reply.report.rounds, reply.report.blackout_ms, sep="\n")
        assert reply.report.rounds[-1].throttled
        assert reply.report.rounds[-1].predicted_ms <= SLOW["max_blackout_ms"]
        assert allowed(moves[B], name) == "max 100000"
        await sweeps_on(moves[B], name)
        await clean(moves, A, B)


async def test_what_is_left_follows_by_post_copy(moves: Cluster) -> None:
    """After the rounds, of which the target keeps what was not written since: only the rest comes over the link."""
    name = "follows"
    async with sweeper(moves, name, mib=40, hot_mib=20, pause=0):
        with slow_link(moves):
            reply = await moves.migrate(name, A, B, strategy="precopy", allow_postcopy=True, **SLOW)
            assert reply.kind is ReplyKind.FINISHED, reply.error
        report = reply.report
        assert report is not None
        print(*report.rounds, *report.parts, report.blackout_ms, report.pages_ms, sep="\n")
        pages = sum(part.bytes for part in report.parts if part.name == "pages")
        assert 0 < pages < 32 << 20, "less than all of it"
        assert report.frozen_memory_bytes < 4 << 20
        await sweeps_on(moves[B], name)
        await clean(moves, A, B)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_it_is_cancelled_in_a_round(moves: Cluster, number: int) -> None:
    name = f"cancelled-{number}"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0):
        with slow_link(moves):
            async with moves.moving(name, A, B, strategy="precopy", throttle=99, **SLOW) as move:
                status = await in_round(move, number)
                assert len(status.rounds) == number - 1
                assert (await move.cancel()).kind is ReplyKind.FINISHED
                end = await move.end()
        assert end.error is not None
        assert end.error.code is ErrorCode.CANCELLED
        assert allowed(moves[A], name) == "max 100000"
        await sweeps_on(moves[A], name)
        await clean(moves, A, B)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_the_target_is_lost_in_a_round(moves: Cluster, number: int) -> None:
    name = f"alone-{number}"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0):
        with slow_link(moves):
            async with moves.moving(name, A, B, strategy="precopy", throttle=99, **SLOW) as move:
                await in_round(move, number)
                moves[B].kill_agent()
                end = await move.end()
        moves[B].start_agent()
        await moves.until_ready()
        assert end.error is not None
        assert end.error.consequence is Consequence.TAKEN_BACK
        assert allowed(moves[A], name) == "max 100000"
        await sweeps_on(moves[A], name)
        await clean(moves, A, B, seconds=60)


async def test_the_source_s_agent_dies_while_it_is_slowed_down(moves: Cluster) -> None:
    name = "orphaned"
    async with sweeper(moves, name, mib=24, hot_mib=24, pause=0):
        with slow_link(moves):
            async with moves.moving(name, A, B, strategy="precopy", throttle=99, **SLOW) as move:
                await in_round(move, 3)
                await until(lambda: allowed(moves[A], name) != "max 100000", "it is slowed down")
                moves[A].kill_agent()
        moves[A].start_agent()
        await moves.until_ready()
        await until(lambda: allowed(moves[A], name) == "max 100000", "it is as fast as it was", 60)
        await sweeps_on(moves[A], name)
        await clean(moves, A, B, seconds=60)


async def test_who_sleeps_is_not_woken_by_a_round(moves: Cluster) -> None:
    """CRIU ends a sleep also where it takes memory alone; busybox `sleep` would take that for its end."""
    name = "sleeps"
    try:
        await start_sleep(moves[A], name, 100000)
        reply = await moves.migrate(name, A, B, strategy="precopy")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert reply.report is not None
        assert reply.report.rounds
        await sleeps(moves[B], name)
        await clean(moves, A, B)
    finally:
        for each in (A, B):
            moves[each].docker("rm", "--force", name, check=False)
