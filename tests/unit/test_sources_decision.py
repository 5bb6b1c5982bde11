"""The source's side from the decision on: written once, kept for good, carried out however often that fails."""

import asyncio
from dataclasses import replace

import pytest

from agent.base.errors import Refused
from agent.migration import journal as journal_module
from agent.migration.machine import Role
from agent.migration.run import Run
from protocol.commands import SourcePolicy
from protocol.errors import ErrorCode
from protocol.peer import DecisionKind, Volume
from protocol.status import Phase
from tests.unit import moves, source_host
from tests.unit.moves import FOR_EVER, TARGET
from tests.unit.source_host import COMMITTED, DONE, ROLLED_BACK, STRANDED, World, nobody_in

program = pytest.fixture(source_host.program)
world = pytest.fixture(source_host.world)


# --- a cancel, around the decision ---


async def test_no_cancel_is_taken_once_the_decision_is_being_written(world: World) -> None:
    nobody_in(world)
    async with world.journal.faults.held(COMMITTED) as writing:
        run = await world.start()
        await writing.wait()
        with pytest.raises(Refused, match="decided"):
            world.sources.cancel(run.id)
    assert await world.end() is None
    assert world.journal.phases[-1] == DONE


async def test_an_agent_that_is_stopped_while_it_decides_leaves_the_decision(world: World) -> None:
    async with world.journal.faults.held(COMMITTED) as writing:
        await world.start()
        await writing.wait()
        closing = asyncio.create_task(world.sources.close())
    await closing
    assert world.journal.phases[-1] == COMMITTED
    assert moves.is_frozen(world.folder / "cgroup")


async def test_a_cancel_in_the_middle_of_a_write_finds_the_run_where_its_journal_is(world: World) -> None:
    async with world.journal.faults.held(Phase.RESERVED) as writing:
        run = await world.start()
        await writing.wait()
        world.sources.cancel(run.id)
    assert await world.failure() is ErrorCode.CANCELLED
    assert world.journal.phases == [Phase.PLANNED, Phase.RESERVED, ROLLED_BACK]


# --- after the decision ---


async def test_what_fails_after_the_decision_is_done_again(world: World) -> None:
    nobody_in(world)
    world.docker.failing.update(remove=3)
    await world.start()
    assert await world.end() is None
    assert world.journal.phases[-1] == DONE
    assert not world.docker.there


async def test_a_restarted_source_goes_on_however_often_that_fails(world: World) -> None:
    nobody_in(world)
    world.docker.failing.update(find=2, remove=2)
    world.peer.failing.update(go=2)
    await world.interrupted(COMMITTED)
    await world.all_ended()
    assert world.journal.phases[-1] == DONE
    assert world.watching.decisions[0] is DecisionKind.COMMIT


@pytest.mark.parametrize(("after", "removed"), [(SourcePolicy.REMOVE, ["data"]), (SourcePolicy.KEEP, [])])
async def test_the_volumes_of_a_copy_that_is_gone_already_go_too(
    world: World, after: SourcePolicy, removed: list[str]
) -> None:
    """An agent was killed between the two: they would stand in the way of the container's return."""
    nobody_in(world)
    offer = moves.offer(volumes=(Volume(kind="volume", name="data", destination="/data"),), after=after)
    world.subject = replace(world.subject, offer=offer, after=after)
    world.docker.there = False
    await world.interrupted(Phase.RUNNING)
    await world.all_ended()
    assert world.journal.phases[-1] == DONE
    assert world.docker.removed_volumes == removed


# --- a person's word ---


async def in_doubt(world: World) -> Run:
    world.peer.failing.update(go=FOR_EVER)
    run = await world.start()
    await world.peer.until(lambda: "go" in world.peer.calls)
    return run


async def test_an_abort_is_durable_before_anything_is_thawed(world: World) -> None:
    run = await in_doubt(world)
    async with world.shell.held("unlock network") as unlocking:
        resolving = asyncio.create_task(world.sources.resolve(run.id, DecisionKind.ABORT))
        await unlocking.wait()
        entry = await world.journal.get(run.id, Role.SOURCE)
        assert entry is not None
        assert entry.phase is STRANDED
        assert moves.is_frozen(world.folder / "cgroup")
    await resolving
    assert world.journal.phases[-1] == ROLLED_BACK
    assert world.runs
    assert world.watching.decisions[-1] is DecisionKind.ABORT


async def test_an_abort_goes_on_after_a_crash_and_however_often_it_fails(world: World) -> None:
    world.docker.failing.update(policy=2)
    await world.interrupted(STRANDED)
    await world.all_ended()
    assert world.journal.phases[-1] == ROLLED_BACK
    assert world.runs


async def test_a_resolved_migration_is_never_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target may come back after years, and must not hear that it is unknown."""
    nobody_in(world)
    run = await in_doubt(world)
    await world.sources.resolve(run.id, DecisionKind.COMMIT)
    assert world.journal.phases[-1] == DONE
    await world.journal.put(moves.entry(Role.SOURCE, DONE, {}, "m-00000000000000aa"))
    monkeypatch.setattr(journal_module, "KEEP_ENDED", 0)
    await world.journal.prune()
    assert await world.journal.get("m-00000000000000aa", Role.SOURCE) is None
    assert await world.sources.decision(TARGET, run.id) is DecisionKind.COMMIT


async def test_a_target_that_confirms_just_now_is_not_resolved(world: World) -> None:
    nobody_in(world)
    async with world.journal.faults.held(Phase.RUNNING) as confirmed:
        run = await world.start()
        await confirmed.wait()
        resolving = asyncio.create_task(world.sources.resolve(run.id, DecisionKind.ABORT))
        await asyncio.wait({next(iter(world.sources.moves.values())).task or resolving}, timeout=0)
    with pytest.raises(Refused, match="has just confirmed"):
        await resolving
    assert world.journal.phases[-1] == DONE
