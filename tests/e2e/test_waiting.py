"""What waits for a time waits on: moved, checkpointed, rehearsed. CRIU alone lets it return with EINTR."""

import asyncio
import time

import pytest

from lab.cluster import Cluster
from protocol.commands import Checkpoint
from tests.e2e.fidelity import move, remove
from tests.e2e.support import clean, done
from tests.e2e.test_rehearsal import check_ended_well
from tests.e2e.waiting import all_return, sleeps, sleeps_to_the_end, start_calls, start_sleep

ACROSS = [("a26", "b28"), ("b28", "a26")]
SLEEP, CALLS = "asleep", "waiting"


@pytest.mark.parametrize(("source", "target"), ACROSS)
async def test_what_sleeps_when_it_is_moved_sleeps_on(moves: Cluster, source: str, target: str) -> None:
    try:
        await start_calls(moves[source], CALLS)
        asleep = await start_sleep(moves[source], SLEEP, 10)
        start = time.monotonic()
        await asyncio.gather(*(move(moves, name, source, target) for name in (SLEEP, CALLS)))
        held = time.monotonic() - start  # both at once, and each of them less
        await sleeps_to_the_end(moves[target], asleep, held)
        await all_return(moves[target], CALLS, held)
        await clean(moves, source, target)
    finally:
        remove(moves, SLEEP, CALLS)


async def test_what_goes_on_after_a_dump_sleeps_on(moves: Cluster) -> None:
    """A rehearsal, and a checkpoint that leaves it running: each has CRIU end the calls of the container itself."""
    here = moves["a26"]
    try:
        await start_sleep(here, SLEEP, 1000)
        await start_calls(here, CALLS)
        start = time.monotonic()
        await done(moves, "a26", Checkpoint, container=CALLS, leave_running=True)
        held = time.monotonic() - start
        check_ended_well(await moves.migrate(SLEEP, "a26", "b28", rehearse=True))
        await done(moves, "a26", Checkpoint, container=SLEEP, leave_running=True)
        await all_return(here, CALLS, held)
        await sleeps(here, SLEEP)
        await clean(moves, "a26", "b28")
    finally:
        remove(moves, SLEEP, CALLS)
