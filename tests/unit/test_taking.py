"""A checkpoint when things fail at the worst moment: nothing is left frozen, and nothing is ended that is not kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.config import Settings
from agent.base.errors import Refused
from agent.base.shell import Shell
from agent.checkpoint import freezer
from agent.doors.docker import Docker
from agent.doors.peer_client import PeerClient
from agent.migration import kept, preflight, source
from agent.migration.host import Host
from agent.migration.machine import Role
from agent.migration.sources import Sources
from agent.migration.targets import Targets
from agent.vault import take
from agent.vault.places import InStore
from agent.vault.vault import Outcome, Vault
from protocol.commands import Checkpoint
from protocol.errors import ErrorCode
from protocol.status import Phase
from tests.unit import moves, source_host
from tests.unit.moves import CONTAINER, SOURCE, FakeDocker, FakeJournal, FakePeer, FakeShell, FakeWatching
from tests.unit.source_host import without_a_container

FROZEN = str(Phase.FROZEN)


class World:
    """A host with one container, of which a checkpoint is taken that ends it."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self.cgroup, self.archives = folder, folder / "cgroup", folder / "checkpoints"
        self.docker = FakeDocker(pid=pid)
        self.journal = FakeJournal(folder / "journal.sqlite")
        self.subject = moves.subject(self.cgroup, pid)
        said: dict[str, Any] = {"host": SOURCE, "state_dir": folder, "deadlines": {"ask_again": 0.002}}
        said["checkpoints"] = {"folder": self.archives}
        host = Host(
            Settings.model_validate(said), cast("Docker", self.docker), cast("Shell", FakeShell()), self.journal
        )
        peer = cast("PeerClient", FakePeer())
        self.sources = Sources(host, lambda name, last_url="": peer, FakeWatching())
        self.vault = Vault(host, self.sources, cast("Targets", None), lambda name, last_url="": peer)
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.killed = 0

    async def begun(self, migration: str) -> None:
        pass

    async def start(self) -> str:
        async def ended(migration: str, outcome: Outcome) -> None:
            self.ended.set_result(outcome)

        command = Checkpoint.model_validate({"id": "c-1", "container": "web", "leave_running": False})
        return await self.vault.checkpoint(command, self.docker.container(), self.begun, ended)

    async def end(self) -> Outcome:
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            return await self.ended

    async def kill(self, *_: object) -> None:
        self.killed += 1
        (self.cgroup / "cgroup.procs").write_text("")
        self.docker.exits(137)

    @property
    def runs(self) -> bool:
        return not self.killed and self.docker.running and not moves.is_frozen(self.cgroup)

    def left(self) -> list[str]:
        return [path.name for path in self.archives.iterdir()] if self.archives.exists() else []


program = pytest.fixture(source_host.program)


class NoDump:
    """CRIU writes nothing here."""

    def __init__(self, *_: object) -> None: ...

    async def nothing(self, *_: object) -> float:
        return 1.0

    make_ready = start = take = release = nothing


@pytest.fixture
async def world(tmp_path: Path, program: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, program)

    without_a_container(monkeypatch, world)

    async def nothing(*_: object) -> None: ...

    async def hold(run: Any, *_: object) -> list[int]:
        run.figures["frozen_at"] = 0.0
        (world.cgroup / "cgroup.freeze").write_text("1")
        return [program]

    async def words(*_: object) -> bytes:
        return b""

    for name in ("write_head", "alone", "lengths", "write_trees", "write_images"):
        monkeypatch.setattr(take, name, nothing)
    monkeypatch.setattr(take, "last_words", words)
    monkeypatch.setattr(take, "Dump", NoDump)
    monkeypatch.setattr(source, "hold", hold)
    monkeypatch.setattr(freezer, "kill_frozen", world.kill)
    await world.journal.open()
    yield world
    await world.vault.close()
    await world.sources.close()
    await world.journal.close()


async def test_it_is_ended_when_all_is_kept(world: World) -> None:
    await world.start()
    outcome = await world.end()
    assert outcome.error is None
    assert [info.id for info in world.vault.store.all()] == [outcome.checkpoint.id if outcome.checkpoint else ""]
    assert world.killed == 1
    assert world.docker.policy == "no", "dockerd would start it empty when it comes up the next time"
    assert kept.recall(world.folder, CONTAINER) == kept.Kept({"Name": "always"}, "first")
    assert world.journal.phases[-1] == Phase.ROLLED_BACK


async def test_a_cancel_comes_too_late_when_it_is_decided(world: World) -> None:
    async with world.docker.held("find") as killed:
        migration = await world.start()
        await asyncio.wait_for(killed.wait(), moves.WATCHDOG_SECONDS)
        with pytest.raises(Refused) as refused:
            world.vault.cancel(migration)
        assert refused.value.code is ErrorCode.TOO_LATE
        assert world.docker.policy == "no", "dockerd does not know yet that it has ended"
    assert (await world.end()).error is None
    assert world.docker.policy == "no"


async def test_a_cancel_that_comes_in_time_lets_it_run_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = asyncio.Event()

    async def keep(self: InStore) -> None:
        keeping.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(InStore, "keep", keep)
    migration = await world.start()
    await asyncio.wait_for(keeping.wait(), moves.WATCHDOG_SECONDS)
    assert world.vault.cancel(migration)
    outcome = await world.end()
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.CANCELLED
    assert world.runs
    assert world.docker.policy == "always"
    assert world.left() == []


async def test_an_agent_that_is_stopped_while_it_decides_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed before the agent goes, not left frozen; the next start sees the rest through."""
    deciding = asyncio.Event()
    decide = take.end

    async def end(*args: Any) -> None:
        deciding.set()
        await asyncio.sleep(0)
        await decide(*args)

    monkeypatch.setattr(take, "end", end)
    migration = await world.start()
    await asyncio.wait_for(deciding.wait(), moves.WATCHDOG_SECONDS)
    await world.vault.close()
    assert world.killed == 1
    assert len(world.vault.store.all()) == 1
    await world.journal.until(Phase.ROLLED_BACK)
    assert world.docker.policy == "no"
    assert kept.recall(world.folder, CONTAINER) == kept.Kept({"Name": "always"}, "first")
    assert not world.docker.running, "it is in the archive: nobody starts it again"
    entry = await world.journal.get(migration, Role.SOURCE)
    assert entry is not None
    assert entry.record["stopped"]


async def test_what_cannot_be_decided_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = InStore.keep

    async def and_then_no_room(self: InStore) -> None:
        await keep(self)
        world.journal.faults.failing[FROZEN] = 1

    monkeypatch.setattr(InStore, "keep", and_then_no_room)
    await world.start()
    assert (await world.end()).error is not None
    assert world.runs
    assert world.docker.policy == "always"
    assert kept.recall(world.folder, CONTAINER) is None
    assert world.left() == [], "no archive of a container that runs on where it was to be ended"


async def test_one_that_somebody_ends_meanwhile_is_not_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep(self: InStore) -> None:
        world.sources.container_signalled(CONTAINER, "15")
        world.docker.exits(0)
        raise OSError("no room")

    monkeypatch.setattr(InStore, "keep", keep)
    await world.start()
    assert (await world.end()).error is not None
    assert not world.docker.running
    assert "start" not in world.docker.calls


async def test_one_that_is_refused_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(*_: object) -> Any:
        raise Refused(ErrorCode.NOT_MIGRATABLE, "it has a terminal")

    monkeypatch.setattr(preflight, "examine", examine)
    await world.start()
    assert (await world.end()).error is not None
    assert world.left() == []


async def test_a_beginning_that_fails_does_not_keep_the_container(world: World) -> None:
    async def begun(migration: str) -> None:
        raise OSError("no room on the journal's disk")

    world.begun = begun  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no room"):
        await world.start()
    await world.journal.until(Phase.REFUSED)
    assert world.left() == []
    del world.begun  # type: ignore[method-assign]
    await world.start()
    assert (await world.end()).error is None
