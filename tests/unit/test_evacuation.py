"""The story of an evacuation with moves on paper: how many at once, and what follows from how each comes out."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.errors import AgentError, Cancelled, ContainerGone, Refused, RestoreFailed
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.sources import Peers, Sources
from agent.shutdown import evacuation, planner, survey
from agent.shutdown.evacuation import Around, Evacuation, Order
from agent.shutdown.places import Leaving
from protocol.base import utc_now
from protocol.commands import Migrate
from protocol.errors import ErrorCode
from protocol.evacuation import EvacuationState, EvacuationStatus, EvacueeState
from protocol.peer import Probed
from protocol.status import Engine, HostStatus, MigrationReport, Phase
from tests.unit import moves
from tests.unit.test_planner import ENGINE, host, one

OTHERS = ("host-b", "host-c")
REPORT = MigrationReport(phases=(), blackout_ms=100.0, total_ms=1000.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evacuation, "PAUSE_SECONDS", 0.01)


class FoundByDocker:
    def __init__(self, identity: str) -> None:
        self.id = identity


@dataclass
class Move:
    """One on paper: `end` it."""

    id: str
    container: str
    to: str
    home: str
    phase: Phase = Phase.COPYING
    failure: Any = None
    record: dict[str, Any] = field(default_factory=dict)


class World:
    """A host with containers, others around it, and a Sources that only remembers what it was asked."""

    def __init__(self, folder: Path, *leaving: Leaving, statuses: Iterable[HostStatus] = ()) -> None:
        self.leaving = list(leaving)
        self.known = list(statuses) or [host(name) for name in OTHERS]
        self.moves: list[Move] = []
        self.cancelled: list[str] = []
        self.refuse: Callable[[str, str], AgentError | None] = lambda container, to: None
        self.begun = asyncio.Event()
        self.told: list[EvacuationStatus] = []
        peer = moves.settings().peer.model_copy(update={"allow": OTHERS})
        settings = moves.settings().model_copy(update={"state_dir": folder, "peer": peer})
        self.host = Host(settings, cast("Any", self), cast("Any", None), cast("Any", None))
        self.evacuation: Evacuation | None = None

    # the door to dockerd
    async def find(self, ref: str) -> FoundByDocker | None:
        return FoundByDocker(ref) if any(each.id == ref for each in self.leaving) else None

    # the hosts
    def statuses(self) -> list[HostStatus]:
        return self.known

    # the peers
    @asynccontextmanager
    async def __call__(self, name: str, last_url: str = "") -> Any:
        yield self

    async def probe(self, migration: str) -> Probed:
        return Probed(rate=1e9)

    # the sources
    async def start(
        self, request: Migrate, container: FoundByDocker, begun: Any, ended: Any, *, migration: str, home: str
    ) -> None:
        name = next(each.name for each in self.leaving if each.id == container.id)
        if (error := self.refuse(name, request.to)) is not None:
            raise error
        assert migration not in {each.id for each in self.moves}
        self.moves.append(Move(migration, name, request.to, home))
        self.begun.set()

    async def knows(self, migration: str) -> bool:
        return any(each.id == migration for each in self.moves)

    def cancel(self, migration: str, why: AgentError) -> None:
        self.cancelled.append(migration)
        found = [each for each in self.moves if each.id == migration]
        if not found:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, "not under way")
        [move] = found
        if move.phase is Phase.COMMITTED:
            raise Refused(ErrorCode.TOO_LATE, "decided")
        self._later = asyncio.create_task(self.end(move, Cancelled(why.message)))

    def underway(self) -> list[Move]:
        return [each for each in self.moves if each.phase in (Phase.COPYING, Phase.COMMITTED)]

    async def end(self, move: Move, error: AgentError | None = None) -> None:
        move.phase = Phase.ROLLED_BACK if error else Phase.DONE
        move.failure = error.info() if error else None
        assert self.evacuation is not None
        if error is None:
            self.leaving = [each for each in self.leaving if each.name != move.container]
        await self.evacuation.ended(cast("Run", move))

    async def until(self, count: int) -> list[Move]:
        """Wait until so many are under way."""
        async with asyncio.timeout(5):
            while len(self.underway()) < count:
                self.begun.clear()
                await self.begun.wait()
        return self.underway()

    def evacuate(self, **order: Any) -> "asyncio.Task[EvacuationStatus]":
        async def changed(now: Evacuation) -> None:
            self.told.append(now.status())

        around = Around(self.host, cast("Sources", self), cast("survey.Hosts", self), cast("Peers", self))
        self.evacuation = Evacuation(Order(**{"id": "e-0123456789abcdef", "parallel": 2, **order}), around, changed)
        return asyncio.create_task(self.evacuation.run())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, *(one(name, mib) for name, mib in (("aa", 10), ("bb", 20), ("cc", 30), ("dd", 40))))

    async def alive(*_: object) -> list[str]:
        return [each.id for each in made.leaving]

    async def look(host: Host, ids: Iterable[str], engine: Engine) -> list[Leaving]:
        return [each for each in made.leaving if each.id in set(ids)]

    async def engine(self: Host) -> Engine:
        return ENGINE

    monkeypatch.setattr(survey, "alive", alive)
    monkeypatch.setattr(survey, "look", look)
    monkeypatch.setattr(Host, "engine", engine)
    monkeypatch.setattr(planner, "SETUP_SECONDS", 0.2)
    monkeypatch.setattr("agent.shutdown.row.report", lambda run: REPORT)
    monkeypatch.setattr("agent.shutdown.evacuation.os.uname", lambda: Uname())
    return made


class Uname:
    machine = "x86_64"


def states(status: EvacuationStatus) -> dict[str, str]:
    return {row.container: str(row.state) for row in status.containers}


async def finish(task: "asyncio.Task[EvacuationStatus]") -> EvacuationStatus:
    async with asyncio.timeout(5):
        return await task


async def test_two_at_once_until_all_have_gone(world: World) -> None:
    task = world.evacuate()
    for number in range(2):
        first, second = await world.until(2)
        assert len(world.moves) == 2 * (number + 1)
        await world.end(first)
        await world.end(second)
    status = await finish(task)
    assert status.state is EvacuationState.DONE
    assert set(states(status).values()) == {"moved"}
    assert [move.container for move in world.moves] == ["aa", "bb", "cc", "dd"]
    assert {move.home for move in world.moves} == {world.host.name}
    assert len({move.id for move in world.moves}) == 4


async def test_it_was_told_before_a_move_is_begun(world: World) -> None:
    task = world.evacuate(parallel=1)
    [move] = await world.until(1)
    said = {row.container: row for row in world.told[-1].containers}
    assert (said["aa"].state, said["aa"].migration) == (EvacueeState.MOVING, move.id)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_a_target_refuses_goes_elsewhere_and_what_all_refuse_is_left(world: World) -> None:
    world.refuse = lambda name, to: (
        Refused(ErrorCode.PORT_TAKEN, f"port 80 is taken on {to}")
        if name == "aa" or (name == "bb" and to == "host-b")
        else None
    )
    task = world.evacuate()
    while not task.done():
        await asyncio.sleep(0)
        for move in world.underway():
            await world.end(move)
    status = await finish(task)
    assert states(status) == {"aa": "left", "bb": "moved", "cc": "moved", "dd": "moved"}
    rows = {row.container: row for row in status.containers}
    assert rows["bb"].to == "host-c"
    assert rows["aa"].error is not None
    assert rows["aa"].error.code is ErrorCode.PORT_TAKEN
    assert {no.host for no in rows["aa"].not_there} == set(OTHERS)


async def test_what_is_taken_back_is_tried_again_with_another_id(world: World) -> None:
    world.leaving = world.leaving[:1]
    task = world.evacuate()
    for _ in range(4):
        [move] = await world.until(1)
        await world.end(move, RestoreFailed("it could not be restored"))
    status = await finish(task)
    assert [move.to for move in world.moves] == ["host-b", "host-b", "host-c", "host-c"]
    assert len({move.id for move in world.moves}) == 4
    [row] = status.containers
    assert row.error is not None
    assert (row.state, row.error.code) == (EvacueeState.LEFT, ErrorCode.RESTORE_FAILED)


async def test_what_has_ended_meanwhile_is_said_to_be_gone(world: World) -> None:
    world.leaving = world.leaving[:2]
    task = world.evacuate()
    first, second = await world.until(2)
    await world.end(first, ContainerGone("it ended"))
    await world.end(second)
    status = await finish(task)
    assert states(status) == {"aa": "left", "bb": "moved"}


async def test_who_is_turned_away_is_tried_again(world: World) -> None:
    times = 0

    def busy(name: str, to: str) -> AgentError | None:
        nonlocal times
        times += 1
        return Refused(ErrorCode.BUSY, "too many") if times <= 3 else None

    world.refuse = busy
    world.leaving = world.leaving[:1]
    task = world.evacuate()
    [move] = await world.until(1)
    await world.end(move)
    assert states(await finish(task)) == {"aa": "moved"}
    assert times == 4


async def test_at_the_deadline_nothing_more_is_begun_and_what_can_be_is_taken_back(world: World) -> None:
    world.leaving[-1] = one("dd", 2000)
    task = world.evacuate(parallel=3, deadline=utc_now() + timedelta(seconds=0.9))
    taken_back, decided, third = await world.until(3)
    decided.phase = Phase.COMMITTED
    await world.end(third)
    async with asyncio.timeout(5):
        while len(world.cancelled) < 2:
            await asyncio.sleep(0.01)
    await world.end(decided)
    status = await finish(task)
    assert states(status) == {
        taken_back.container: "left",
        decided.container: "moved",
        third.container: "moved",
        "dd": "left",
    }
    codes = {row.error.code for row in status.containers if row.error}
    assert codes == {ErrorCode.TOO_LITTLE_TIME}
    assert len(world.moves) == 3


async def test_what_was_not_begun_yet_at_the_deadline_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world, "start", never)
    task = world.evacuate(containers=frozenset({world.leaving[0].id}), deadline=utc_now() + timedelta(seconds=0.9))
    async with asyncio.timeout(5):
        await asked.wait()
    status = await finish(task)
    [row] = [row for row in status.containers if row.container == "aa"]
    assert row.state is EvacueeState.LEFT
    assert row.error is not None
    assert row.error.code is ErrorCode.TOO_LITTLE_TIME


async def test_a_cancel_is_the_same_at_once(world: World) -> None:
    task = world.evacuate()
    await world.until(2)
    assert world.evacuation is not None
    world.evacuation.cancel()
    status = await finish(task)
    assert status.state is EvacuationState.CANCELLED
    assert set(states(status).values()) == {"left"}
    assert {row.error.code for row in status.containers if row.error} == {ErrorCode.CANCELLED}
    assert len(world.moves) == 2


async def test_what_comes_while_it_goes_on_goes_too(world: World) -> None:
    late = one("zz", 1)
    world.leaving = world.leaving[:1]
    task = world.evacuate()
    [move] = await world.until(1)
    world.leaving.append(late)
    await world.end(move)
    [move] = await world.until(1)
    assert move.container == "zz"
    await world.end(move)
    assert states(await finish(task)) == {"aa": "moved", "zz": "moved"}


async def test_room_that_is_made_meanwhile_is_used(world: World) -> None:
    """Too little memory at first; then a host says that it has more."""
    world.known = [host("host-b", 150)]
    world.leaving = [one("aa", 10), one("bb", 100)]
    task = world.evacuate()
    [move] = await world.until(1)
    world.known = [host("host-b", 4096)]
    await world.end(move)
    [move] = await world.until(1)
    await world.end(move)
    assert states(await finish(task)) == {"aa": "moved", "bb": "moved"}


async def test_just_after_the_start_of_the_agent_no_host_means_nothing(world: World) -> None:
    there, world.known = world.known, []
    world.leaving = world.leaving[:1]

    async def changed(now: Evacuation) -> None:
        pass

    around = Around(world.host, cast("Sources", world), cast("survey.Hosts", world), cast("Peers", world))
    world.evacuation = Evacuation(Order("e-0123456789abcdef"), around, changed)
    task = asyncio.create_task(world.evacuation.run(settle_seconds=5))
    await asyncio.sleep(0.05)
    assert not task.done()
    world.known = there
    world.evacuation.heard()
    [move] = await world.until(1)
    await world.end(move)
    assert states(await finish(task)) == {"aa": "moved"}


async def test_a_plan_touches_nothing(world: World) -> None:
    async def changed(now: Evacuation) -> None:
        raise AssertionError

    around = Around(world.host, cast("Sources", world), cast("survey.Hosts", world), cast("Peers", world))
    status = await Evacuation(Order("e-0123456789abcdef", only=("host-c",)), around, changed).plan()
    assert status.state is EvacuationState.PLANNED
    assert {row.to for row in status.containers} == {"host-c"}
    assert all(row.why and row.not_there and row.predicted_s for row in status.containers)
    assert not world.moves
