"""The source's side of its moves: one story a container, from its beginning to what the journal finds of it."""

import asyncio
from pathlib import Path

import pytest

from agent.base.errors import Refused
from agent.migration import leaving
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from protocol.errors import ErrorCode
from protocol.status import Phase
from tests.unit import moves, source_host
from tests.unit.moves import CONTAINER, ID
from tests.unit.source_host import COMMITTED, DONE, ROLLED_BACK, World, nobody_in

program = pytest.fixture(source_host.program)
world = pytest.fixture(source_host.world)


async def test_a_move_with_nothing_wrong(world: World) -> None:
    nobody_in(world)
    await world.start()
    assert await world.end() is None
    assert world.journal.phases[-3:] == [COMMITTED, Phase.RUNNING, DONE]
    assert not world.docker.there
    assert world.sources.open() == []


# --- one story a container ---


async def test_two_commands_at_once_begin_one_move(world: World) -> None:
    nobody_in(world)
    begun = await asyncio.gather(world.start(), world.start(), return_exceptions=True)
    (refused,) = [each for each in begun if isinstance(each, Refused)]
    assert refused.code is ErrorCode.BUSY
    await world.end()


async def test_a_migration_that_was_begun_before_is_not_begun_again(world: World) -> None:
    """Its id is made from that of an evacuation, whose command may come twice."""
    nobody_in(world)
    await world.journal.put(moves.entry(Role.SOURCE, ROLLED_BACK, {"container_id": CONTAINER}))

    async def nothing(*_: object) -> None:
        raise AssertionError

    with pytest.raises(Refused, match=ID) as refused:
        await world.sources.start(moves.request(), world.docker.container(), nothing, nothing, migration=ID)
    assert refused.value.code is ErrorCode.TOO_LATE
    assert world.sources.open() == []


async def test_a_command_and_an_evacuation_at_once_begin_one_move(world: World) -> None:
    nobody_in(world)
    other = "m-" + "f" * 16

    async def nothing(*_: object) -> None:
        pass

    of_evacuation = world.sources.start(moves.request(), world.docker.container(), nothing, nothing, migration=other)
    begun = await asyncio.gather(of_evacuation, world.start(), return_exceptions=True)
    (refused,) = [each for each in begun if isinstance(each, Refused)]
    assert refused.code is ErrorCode.BUSY
    await world.all_ended()


@pytest.mark.parametrize(("role", "phase"), [(Role.SOURCE, Phase.FROZEN), (Role.TARGET, Phase.RUNNING)])
async def test_a_container_that_the_journal_has_in_another_move_is_busy(world: World, role: Role, phase: Phase) -> None:
    """Not taken up again yet; or it has just come here, and is not settled."""
    await world.journal.put(moves.entry(role, phase, {"container_id": CONTAINER}))
    with pytest.raises(Refused, match=ID):
        await world.start()
    await world.journal.put(
        moves.entry(role, ROLLED_BACK if role is Role.SOURCE else DONE, {"container_id": CONTAINER})
    )
    nobody_in(world)
    await world.start()
    assert await world.end() is None


async def test_a_move_that_could_not_begin_leaves_nothing_open(world: World) -> None:
    async def begun(run: Run) -> None:
        raise OSError("no room on the journal's disk")

    with pytest.raises(OSError, match="no room"):
        await world.sources.start(moves.request(), world.docker.container(), begun, None)  # type: ignore[arg-type]
    await world.all_ended()
    assert world.journal.phases == [Phase.PLANNED, Phase.REFUSED]


# --- the target's lease ---


async def test_the_target_hears_that_its_source_is_alive_while_nothing_is_decided(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody_in(world)
    monkeypatch.setattr(leaving, "ALIVE_SECONDS", 0.001)
    async with world.peer.held("create"):
        run = await world.start()
        await world.peer.until(lambda: world.peer.calls.count("alive") > 3)
    assert await world.end() is None
    assert "alive" not in world.peer.calls[world.peer.calls.index("go") :]
    assert run.phase is DONE


# --- the journal ---


async def test_a_source_knows_what_is_unfinished_for_both_roles(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.open()
    for number, (role, phase) in enumerate((role, phase) for role in Role for phase in Phase):
        await journal.put(moves.entry(role, phase, {}, f"m-{number:016x}"))
    unfinished = {(entry.role, entry.phase) for entry in await journal.unfinished()}
    await journal.close()
    ends = {DONE, ROLLED_BACK, Phase.REFUSED, Phase.DISCARDED}
    assert unfinished == {(role, phase) for role in Role for phase in Phase if phase not in ends}
