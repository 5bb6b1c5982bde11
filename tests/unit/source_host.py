"""A source host with one move of its only container, to fail at will. No tests."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from agent.base.errors import AgentError, DumpFailed
from agent.doors.peer_client import PeerClient
from agent.migration import choosing, leaving, preflight
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.migration.sources import Sources
from agent.migration.subject import Subject
from protocol.errors import ErrorCode
from protocol.status import Phase
from tests.unit import moves
from tests.unit.moves import CONTAINER, SOURCE, FakeDocker, FakeJournal, FakePeer, FakeShell, FakeStrategy, FakeWatching

COMMITTED, STRANDED, ROLLED_BACK, DONE = Phase.COMMITTED, Phase.STRANDED, Phase.ROLLED_BACK, Phase.DONE


@contextmanager
def started(argv: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def program() -> Iterator[int]:
    """A container's only process, as far as /proc knows."""
    with started(["sleep", "600"]) as process:
        yield process.pid


class World:
    """A source host, its doors, and one move of its only container."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.docker = FakeDocker(pid=pid)
        self.shell = FakeShell()
        self.journal = FakeJournal(folder / "journal.sqlite")
        self.peer = FakePeer()
        self.watching = FakeWatching()
        self.subject = moves.subject(folder / "cgroup", pid)
        self.ended: asyncio.Future[AgentError | None] = asyncio.get_running_loop().create_future()
        host = moves.host(SOURCE, self.docker, self.shell, self.journal)
        self.sources = Sources(host, lambda name, last_url="": cast("PeerClient", self.peer), self.watching)

    async def start(self) -> Run:
        async def begun(run: Run) -> None:
            pass

        async def ended(run: Run, error: AgentError | None) -> None:
            self.ended.set_result(error)

        return await self.sources.start(moves.request(), self.docker.container(), begun, ended)

    async def end(self) -> AgentError | None:
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            return await self.ended

    async def failure(self) -> ErrorCode:
        """The code of the error that it has ended with."""
        error = await self.end()
        assert error is not None
        return error.code

    async def all_ended(self) -> None:
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            await asyncio.gather(*(move.task for move in self.sources.moves.values() if move.task))
        assert self.sources.open() == []

    async def interrupted(self, phase: Phase) -> None:
        """What an agent finds that was ended in this phase, with the container frozen and its policy off."""
        record = {"container_id": CONTAINER, "peer_url": "", **self.subject.to_record()}
        entry = moves.entry(Role.SOURCE, phase, record)
        await self.journal.put(entry)
        (self.folder / "cgroup" / "cgroup.freeze").write_text("1")
        self.docker.policy = "no"
        self.sources.recover(entry)

    @property
    def runs(self) -> bool:
        return self.docker.running and not moves.is_frozen(self.folder / "cgroup")


class Host(Protocol):
    """What stands for a host with one container."""

    folder: Path
    subject: Subject


def without_a_container(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """Have the host's subject found where its container would be looked at, and dumped by nobody."""

    async def examine(*_: object) -> Subject:
        return host.subject

    monkeypatch.setattr(preflight, "examine", examine)
    monkeypatch.setitem(choosing.strategies, "cold", FakeStrategy)
    monkeypatch.setattr(leaving, "DUMPS", host.folder)
    moves.of_its_own_network(monkeypatch)


async def world(tmp_path: Path, program: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, program)
    without_a_container(monkeypatch, world)
    await world.journal.open()
    yield world
    await world.sources.close()
    await world.journal.close()


def dump_fails(monkeypatch: pytest.MonkeyPatch, also: Any = lambda: None) -> None:
    def dump() -> None:
        also()
        raise DumpFailed("CRIU could not dump the container")

    monkeypatch.setattr(FakeStrategy, "dump", staticmethod(dump))


def nobody_in(world: World) -> None:
    """Nothing is left in the cgroup, so that its end takes no time."""
    (world.folder / "cgroup" / "cgroup.procs").write_text("")
