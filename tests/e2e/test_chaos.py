"""What ./scripts/chaos relies on: its observer sees what is wrong. And a bounded part of it: some accidents, and its
crowd of containers, smaller.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from lab.chaos import crowd, kernel
from lab.chaos.campaign import Campaign
from lab.chaos.ground import A, B, Ground
from lab.chaos.inspect_host import leftovers
from lab.chaos.judge import wait_for_rest
from lab.chaos.loads import NAME, Load
from lab.chaos.observer import Observer
from lab.chaos.plan import CONTAINER_RUNS, Accident, Fault, Plan
from lab.workloads import run_counter
from tests.e2e.support import until

CROWD, TOGETHER = 8, 6
ACCIDENTS = (
    (Accident.AGENT_KILLED, "source", ("target", "prepared")),
    (Accident.CRIU_KILLED, "target", ("target", "restoring")),
    (Accident.DOCKERD_KILLED, "target", ("target", "staged")),
    (Accident.AGENT_KILLED, "target", ("source", "committed")),
    (Accident.RUNC_KILLED, "source", ("source", "frozen")),
    (Accident.TRUNCATED, "target", ("source", "frozen")),
    (Accident.FLIPPED, "target", ("target", "staged")),
    (Accident.CONTAINERD_KILLED, "target", ("target", "restoring")),
    (Accident.CANCEL, "source", ("source", "copying")),
    (Accident.DISK_FULL, "source", ("source", "prepared")),
)
LOCK = f"nft add table inet {kernel.TABLE}"


@pytest.fixture(scope="module")
def made() -> Iterator[Ground]:
    ground = Ground.make("chaos")
    try:
        yield ground
    finally:
        ground.remove()


@pytest.fixture
async def ground(made: Ground) -> AsyncIterator[Ground]:
    await made.open()
    yield made
    await made.pause()


async def test_the_observer_sees_two_copies_and_what_is_left(ground: Ground) -> None:
    """A check that could not fail would be none."""
    host, other = ground[A], ground[B]
    observer = Observer(ground.hosts)
    try:
        for each in (host, other):
            run_counter(each, NAME)
        observer.start(A)
        await until(lambda: bool(observer.violations), "the observer has seen both")
        assert "two copies run and are unlocked" in observer.violations[0]
        assert observer.target_ran_at is not None or observer.running_together
        wrong, _ = await asyncio.to_thread(wait_for_rest, ground.hosts, 0.0)
        assert any("2 containers named" in each for each in wrong), wrong
        other.docker("pause", NAME)
        other.run(["mkdir", "-p", "/run/transship/handover/left"])
        found = await asyncio.to_thread(leftovers, other)
        assert any("is FROZEN" in each for each in found), found
        assert "/run/transship/handover/left" in found
        pid = kernel.first_task(host, host.docker("inspect", "-f", "{{.Id}}", NAME))
        assert kernel.tables(pid) == []
        host.run(["sh", "-c", f"nsenter --net=/proc/$(docker inspect -f '{{{{.State.Pid}}}}' {NAME})/ns/net {LOCK}"])
        assert kernel.tables(pid) == [kernel.TABLE]
        assert any("is locked" in each for each in await asyncio.to_thread(leftovers, host))
    finally:
        observer.stop()
        other.run(["rm", "-rf", "/run/transship/handover/left"])
        for each in (host, other):
            each.docker("rm", "--force", NAME, check=False)


async def test_accidents_cost_nothing(ground: Ground) -> None:
    """Each at the moment where it hurts most, in both directions, one container for as long as it is whole."""
    campaign = Campaign(ground, seed=0)
    try:
        for number, (accident, side, moment) in enumerate(ACCIDENTS):
            load = Load.COUNTER if number < CONTAINER_RUNS else Load.RECORDS
            this = Plan(0, number, load, "cold", (Fault(accident, side, moment, 0, 0.3, number),))
            seen = await campaign.run(this)
            assert seen.verdict.violations == [], this
            assert seen.looks > 0
    finally:
        await asyncio.to_thread(campaign.close)


async def test_a_crowd_moves_as_many_at_once_as_a_host_takes(ground: Ground) -> None:
    found = await crowd.moved(ground.cluster, A, B, CROWD, together=TOGETHER, limit=4)
    assert found.wrong == ()
    assert found.busy, "more commands at once than moves at once"
