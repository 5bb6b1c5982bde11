"""The source's side when things fail at the worst moment: what is decided goes on, what is not is taken back."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.errors import AgentError, DumpFailed, Refused
from agent.checkpoint import proc
from agent.doors.peer_client import PeerClient
from agent.migration import journal as journal_module
from agent.migration import leaving, preflight, restarting, sources
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.migration.sources import Sources
from protocol.errors import ErrorCode
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.unit import moves
from tests.unit.moves import (
    CONTAINER,
    FOR_EVER,
    ID,
    SOURCE,
    TARGET,
    FakeDocker,
    FakeJournal,
    FakePeer,
    FakeShell,
    FakeStrategy,
    FakeWatching,
    Faults,
)

COMMITTED, STRANDED, ROLLED_BACK, DONE = Phase.COMMITTED, Phase.STRANDED, Phase.ROLLED_BACK, Phase.DONE


@contextmanager
def started(argv: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, **how) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
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

    async def all_ended(self) -> None:
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            await asyncio.gather(*(move.task for move in self.sources._moves.values() if move.task))
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


@pytest.fixture
async def world(tmp_path: Path, program: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, program)

    async def examine(*_: object) -> Any:
        return world.subject

    monkeypatch.setattr(preflight, "examine", examine)
    monkeypatch.setattr(sources, "Cold", FakeStrategy)
    monkeypatch.setitem(sources.strategies, "cold", FakeStrategy)
    monkeypatch.setattr(leaving, "DUMPS", tmp_path)
    moves.of_its_own_network(monkeypatch)
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


async def test_a_move_with_nothing_wrong(world: World) -> None:
    nobody_in(world)
    await world.start()
    assert await world.end() is None
    assert world.journal.phases[-3:] == [COMMITTED, Phase.RUNNING, DONE]
    assert not world.docker.there
    assert world.sources.open() == []


# --- taking back, until it works ---


async def test_an_undo_that_fails_is_tried_until_the_container_is_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_fails(monkeypatch, lambda: world.docker.failing.update(policy=3))
    await world.start()
    error = await world.end()
    assert error is not None
    assert error.code is ErrorCode.STRANDED
    await world.all_ended()
    assert world.journal.phases[-2:] == [STRANDED, ROLLED_BACK]
    assert world.runs
    assert world.docker.policy == "always"


async def test_a_target_that_asks_need_not_wait_for_an_undo_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_fails(monkeypatch, lambda: world.docker.failing.update(policy=FOR_EVER))
    run = await world.start()
    await world.end()
    assert await world.sources.decision(TARGET, run.id) is DecisionKind.ABORT
    assert world.watching.decisions[-1] is DecisionKind.ABORT


async def test_recovery_goes_on_until_dockerd_is_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.docker.failing.update(find=5)
    await world.interrupted(Phase.FROZEN)
    await world.all_ended()
    assert world.journal.phases[-1] == ROLLED_BACK
    assert world.runs
    assert world.docker.policy == "always"
    assert len([line for line in caplog.messages if "dockerd is away" in line]) == 1


async def test_an_end_that_can_not_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_fails(monkeypatch)
    world.journal.faults.failing.update({ROLLED_BACK: 3})
    await world.start()
    error = await world.end()
    assert error is not None
    assert error.code is ErrorCode.DUMP_FAILED
    assert world.journal.phases[-1] == ROLLED_BACK


async def test_neither_a_cancel_nor_a_death_stops_a_recovery(world: World) -> None:
    world.docker.failing.update(find=FOR_EVER)
    await world.interrupted(Phase.FROZEN)
    await world.docker.until(lambda: "find" in world.docker.calls)
    with pytest.raises(Refused, match="taken back already"):
        world.sources.cancel(ID)
    world.sources.container_died(CONTAINER)
    world.docker.failing.clear()
    await world.all_ended()
    assert world.runs


async def test_a_slow_peer_does_not_make_an_undo_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_fails(monkeypatch)
    monkeypatch.setattr(leaving, "DISCARD_SECONDS", 0.01)
    async with world.peer.held("discard"):
        await world.start()
        error = await world.end()
    assert error is not None
    assert error.code is ErrorCode.DUMP_FAILED
    assert world.journal.phases[-1] == ROLLED_BACK


async def test_a_dump_that_takes_too_long_is_taken_back(world: World) -> None:
    world.sources._host = replace(world.sources._host, settings=moves.settings(dump=0.01))
    async with world.peer.held("printed"):
        await world.start()
        error = await world.end()
    assert error is not None
    assert error.code is ErrorCode.STEP_TIMEOUT
    assert world.runs


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
    error = await world.end()
    assert error is not None
    assert error.code is ErrorCode.CANCELLED
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
        await asyncio.wait({next(iter(world.sources._moves.values())).task or resolving}, timeout=0)
    with pytest.raises(Refused, match="has just confirmed"):
        await resolving
    assert world.journal.phases[-1] == DONE


# --- one story a container ---


async def test_two_commands_at_once_begin_one_move(world: World) -> None:
    nobody_in(world)
    begun = await asyncio.gather(world.start(), world.start(), return_exceptions=True)
    (refused,) = [each for each in begun if isinstance(each, Refused)]
    assert refused.code is ErrorCode.BUSY
    await world.end()


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


# --- what Docker would have done meanwhile ---


@pytest.mark.parametrize("signals", [[], ["15"]], ids=["by-itself", "docker-stop"])
async def test_a_program_that_ended_meanwhile_is_started_unless_somebody_stopped_it(
    world: World, monkeypatch: pytest.MonkeyPatch, signals: list[str]
) -> None:
    def ends() -> None:
        for sent in signals:
            world.sources.container_signalled(CONTAINER, sent)
        world.docker.exits(1)

    dump_fails(monkeypatch, ends)
    await world.start()
    await world.end()
    assert world.docker.policy == "always"
    assert world.docker.running is (not signals)


@pytest.mark.parametrize(
    ("policy", "code", "starts"),
    [
        ("always", 0, True),
        ("unless-stopped", 0, True),
        ("on-failure", 1, True),
        ("on-failure", 0, False),
        ("no", 1, False),
    ],
)
async def test_which_policy_starts_what_has_ended(policy: str, code: int, starts: bool) -> None:
    docker = FakeDocker()
    docker.exits(code)
    await restarting.start_as_docker_would(docker, CONTAINER, {"Name": policy})  # type: ignore[arg-type]
    assert docker.running is starts


@pytest.mark.parametrize(
    ("sent", "stop_signal", "meant"),
    [
        ("15", "", True),
        ("1", "", True),
        ("1", "SIGQUIT", False),
        ("3", "SIGQUIT", True),
        ("3", "quit", True),
        ("9", "SIGQUIT", True),
        ("37", "SIGRTMIN+3", True),
        ("", "SIGQUIT", False),
    ],
)
def test_which_signal_is_meant_to_end_a_container(sent: str, stop_signal: str, meant: bool) -> None:
    assert restarting.is_meant_to_end(sent, stop_signal) is meant


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


# --- the dump that a crash has left behind ---


@pytest.mark.parametrize("named", [True, False], ids=["on-its-command-line", "where-it-stands"])
async def test_recovery_thaws_when_the_dump_left_behind_has_ended(
    world: World, tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, criu_in = Faults(), proc.criu_in

    def look(folder: Path) -> list[int]:
        looks.note("look")
        return criu_in(folder)

    monkeypatch.setattr(proc, "criu_in", look)
    criu = tmp_path / ("runc" if named else "criu")
    shutil.copy("/bin/cat", criu)
    images = tmp_path / ID / "images"
    images.mkdir(parents=True)
    called = f"runc checkpoint --image-path {images}" if named else "criu swrk"
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([called], executable=criu, cwd=None if named else tmp_path / ID, **how) as dumping:
        assert dumping.stdin is not None
        assert dumping.stdout is not None
        dumping.stdin.write(b"!")
        dumping.stdin.flush()
        assert dumping.stdout.read(1) == b"!"  # it runs; before that /proc has not all of it
        assert criu_in(tmp_path / ID) == [dumping.pid]
        assert criu_in(tmp_path / "m-another") == []
        await world.interrupted(Phase.FROZEN)
        waiting = asyncio.create_task(world.all_ended())
        await looks.until(lambda: len(looks.calls) > 4)
        assert not waiting.done()
        assert moves.is_frozen(tmp_path / "cgroup")
        dumping.kill()
        dumping.wait()
        await waiting
    assert world.runs


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
