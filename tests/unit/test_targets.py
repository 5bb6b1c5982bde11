"""The target's side when things fail at the worst moment: it never runs unasked, nor gives up what was decided."""

import asyncio
import ctypes
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.base.errors import AgentError, Refused, RestoreFailed, Stranded
from agent.checkpoint import proc
from agent.migration import admission, targets
from agent.migration.admission import Reserved
from agent.migration.machine import Role
from agent.migration.target import Target
from agent.migration.targets import Targets
from protocol.errors import ErrorCode
from protocol.peer import Answer, DecisionKind, Manifest, Offer, Prepared
from protocol.status import Phase
from tests.unit import moves
from tests.unit.moves import (
    CONTAINER,
    ENGINE,
    FOR_EVER,
    ID,
    SOURCE,
    TARGET,
    FakeAsking,
    FakeDocker,
    FakeJournal,
    FakeShell,
    Faults,
)

STAGED, PREPARED, RUNNING, DONE = Phase.STAGED, Phase.PREPARED, Phase.RUNNING, Phase.DONE
STRANDED, DISCARDED = Phase.STRANDED, Phase.DISCARDED
COMMIT, ABORT = DecisionKind.COMMIT, DecisionKind.ABORT
PTRACE_SEIZE = 0x4206


class World:
    """A target host, its doors, and one copy that comes to it."""

    def __init__(self, folder: Path) -> None:
        self.docker = FakeDocker(policy="no")
        self.shell = FakeShell()
        self.journal = FakeJournal(folder / "journal.sqlite")
        self.asking = FakeAsking()
        self.copy = Faults()
        """What is done to the copy: `let-run`, `prepare`."""
        host = moves.host(TARGET, self.docker, self.shell, self.journal)

        async def decide(peer: str, migration: str) -> DecisionKind:
            return DecisionKind.PENDING

        self.targets = Targets(host, self.asking, decide)

    async def found(self, phase: Phase, pid: int, migration: str = ID, **record: Any) -> None:
        """What an agent finds in its journal when it starts; the copy is process `pid`."""
        # one that is gone has a start time that no process has
        there = {"pid": pid, "pid_start": proc.start_time(pid) or -1, "container_id": CONTAINER}
        offer = moves.offer(migration=migration).model_dump(mode="json")
        entry = moves.entry(Role.TARGET, phase, {"offer": offer, **there, **record}, migration)
        await self.journal.put(entry)
        self.targets.recover(entry)

    async def offered(self) -> Target:
        await self.targets.offer(SOURCE, moves.offer())
        return self.targets.open()[0]

    async def ended(self, phase: Phase) -> None:
        """Wait for an end, and for all that works on it."""
        await self.journal.until(phase)
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            await asyncio.gather(*self.targets._work, return_exceptions=True)
        assert self.targets.open() == []

    async def phase(self, migration: str = ID) -> Phase:
        entry = await self.journal.get(migration, Role.TARGET)
        assert entry is not None
        return entry.phase


@pytest.fixture
def unheld() -> Iterator[int]:
    """A restored copy's first process, as far as /proc knows; nobody traces it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def copy() -> Iterator[int]:
    """The same, in the hand of who restores it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        assert ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, process.pid, None, None) == 0
        yield process.pid
        process.kill()


@pytest.fixture
def gone() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path)

    async def let_run(target: Target) -> None:
        await world.copy.call("let-run", lambda: RestoreFailed("the network can't be unlocked"))

    async def examine(*_: object) -> tuple[Answer, Reserved]:
        return Answer(missing_layers=(), image_wanted=False, engine=ENGINE), Reserved("web", 0, 0)

    monkeypatch.setattr(Target, "_let_run", let_run)
    monkeypatch.setattr(admission, "examine", examine)
    monkeypatch.setattr(targets, "ASK_AFTER_SECONDS", 0.0)
    await world.journal.open()
    yield world
    await world.targets.close()
    await world.journal.close()


# --- let run, then settled ---


async def test_a_copy_that_was_not_let_run_is_never_settled(world: World, copy: int) -> None:
    """Or `go` would be answered `it runs`, and the source would end its own."""
    world.copy.failing.update({"let-run": FOR_EVER})
    await world.found(RUNNING, copy)
    await world.copy.until(lambda: world.copy.calls.count("let-run") > 3)
    with pytest.raises(RestoreFailed):
        await world.targets.go(SOURCE, ID)
    assert await world.phase() is RUNNING
    assert world.docker.policy == "no"
    world.copy.failing.clear()
    await world.ended(DONE)
    assert world.docker.policy == "always"


async def test_go_is_answered_when_the_copy_runs_and_settled_by_itself(world: World, copy: int) -> None:
    await world.found(PREPARED, copy)
    assert (await world.targets.go(SOURCE, ID)).phases
    assert world.copy.calls == ["let-run"]
    await world.ended(DONE)
    assert (await world.targets.go(SOURCE, ID)).phases == ()


async def test_a_copy_that_ran_and_was_ended_by_a_reboot_is_started(world: World, gone: int) -> None:
    world.docker.exits(255)
    await world.found(RUNNING, gone, released=True)
    await world.ended(DONE)
    assert world.docker.running
    assert world.docker.policy == "always"
    assert world.docker.calls.index("policy") < world.docker.calls.index("start")


async def test_dockerd_that_has_missed_the_end_of_one_is_told_and_it_is_started(world: World, gone: int) -> None:
    """It can't change what it takes for running: its containerd was killed as the copy ended."""
    world.docker.pid = gone
    world.docker.failing.update(policy=1)
    await world.found(RUNNING, gone, released=True)
    await world.docker.until(lambda: "stop" in world.docker.calls)
    world.targets.container_signalled(CONTAINER, "9")  # by which dockerd has found it out
    await world.ended(DONE)
    assert world.docker.policy == "always"
    assert world.docker.running


async def test_what_runs_is_never_stopped_where_its_policy_can_not_be_set(world: World, copy: int) -> None:
    world.docker.pid = copy
    world.docker.failing.update(policy=2)
    await world.found(RUNNING, copy, released=True)
    await world.ended(DONE)
    assert "stop" not in world.docker.calls


async def test_forget_changes_nothing_for_one_that_waits_for_the_decision(world: World, copy: int) -> None:
    await world.found(PREPARED, copy)
    await world.targets.forget(SOURCE, ID)
    assert [target.run.phase for target in world.targets.open()] == [PREPARED]
    world.asking.said = COMMIT
    await world.ended(DONE)


# --- a copy that is gone ---


async def test_running_is_not_entered_for_a_copy_that_is_gone(world: World, gone: int) -> None:
    await world.found(PREPARED, gone)
    with pytest.raises(Stranded, match="gone before it ran"):
        await world.targets.go(SOURCE, ID)
    assert await world.phase() is PREPARED
    world.asking.said = ABORT
    await world.ended(DISCARDED)


@pytest.fixture
def killed() -> Iterator[int]:
    """Whoever holds it has not reaped it: the kernel still has its number."""
    with subprocess.Popen(["sleep", "600"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


async def test_nor_for_one_that_was_killed_and_is_waited_for_by_nobody(world: World, killed: int) -> None:
    assert proc.start_time(killed) is not None
    await world.found(PREPARED, killed)
    with pytest.raises(Stranded, match="gone before it ran"):
        await world.targets.go(SOURCE, ID)
    assert await world.phase() is PREPARED
    world.asking.said = ABORT
    await world.ended(DISCARDED)


async def test_nor_for_one_whose_criu_was_killed(world: World, unheld: int) -> None:
    """runc gives up what it has restored as soon as it hears of that, and the source would have ended its own."""
    await world.found(PREPARED, unheld)
    with pytest.raises(Stranded, match="gone before it ran"):
        await world.targets.go(SOURCE, ID)
    assert await world.phase() is PREPARED
    assert world.copy.calls == []
    world.asking.said = ABORT
    await world.ended(DISCARDED)


async def test_one_that_was_being_let_run_needs_no_criu(world: World, unheld: int) -> None:
    """An agent was killed at that: CRIU has ended by now, as it should."""
    await world.found(RUNNING, unheld)
    await world.ended(DONE)
    assert world.copy.calls == ["let-run"]


async def test_a_copy_that_is_gone_after_running_was_entered_is_stranded_until_it_hears_abort(
    world: World, gone: int
) -> None:
    world.asking.said = COMMIT
    await world.found(RUNNING, gone)
    await world.journal.until(STRANDED)
    with pytest.raises(Stranded, match="is gone, and may have run for a moment"):
        await world.targets.go(SOURCE, ID)
    await world.asking.source.until(lambda: world.asking.source.calls.count("decision") > 3)
    assert await world.phase() is STRANDED
    world.asking.said = ABORT
    await world.ended(DISCARDED)


async def test_a_stranded_copy_is_found_again_after_a_restart_and_a_person_may_discard_it(
    world: World, gone: int
) -> None:
    await world.found(STRANDED, gone)
    with pytest.raises(Refused, match="nothing to commit"):
        await world.targets.resolve(ID, COMMIT)
    await world.targets.resolve(ID, ABORT)
    assert await world.phase() is DISCARDED


# --- discarding ---


async def test_a_discard_that_waited_for_go_to_end_comes_too_late(world: World, copy: int) -> None:
    await world.found(PREPARED, copy)
    async with world.copy.held("let-run") as running:
        going = asyncio.create_task(world.targets.go(SOURCE, ID))
        await running.wait()
        discarding = asyncio.create_task(world.targets.discard(SOURCE, ID))
    await going
    with pytest.raises(AgentError) as failure:
        await discarding
    assert failure.value.info().code is ErrorCode.TOO_LATE
    assert world.docker.there


async def test_an_agent_that_stops_does_not_discard_what_was_proved_just_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(target: Target, manifest: Manifest) -> Prepared:
        await target.run.enter(Phase.RESTORING)
        await world.copy.call("prepare", RuntimeError)
        await target.run.enter(PREPARED)
        return Prepared(tasks=1, restore_ms=1.0, phases=())

    monkeypatch.setattr(Target, "prepare", prepare)
    target = await world.offered()
    await target.run.enter(STAGED)
    async with world.copy.held("prepare") as preparing:
        prepared = asyncio.create_task(world.targets.prepare(SOURCE, ID, Manifest(parts=(), images=(), tasks=1)))
        await preparing.wait()
        closing = asyncio.create_task(world.targets.close())
        await target._given_up.wait()  # its discard is asked for, and waits for the lock
    await closing
    await prepared
    assert await world.phase() is PREPARED
    assert "remove" not in world.docker.calls


async def test_what_is_under_way_is_discarded_when_the_agent_stops(world: World) -> None:
    target = await world.offered()
    await target.run.enter(STAGED)
    await world.targets.close()
    assert await world.phase() is DISCARDED


# --- what is promised ---


async def test_what_was_promised_to_one_stands_against_the_next_until_it_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised: list[list[str]] = []

    async def examine(_: object, offer: Offer, others: list[Reserved], *more: object) -> tuple[Answer, Reserved]:
        promised.append(sorted(other.container for other in others))
        return Answer(missing_layers=(), image_wanted=False, engine=ENGINE), Reserved(offer.container, 1 << 20, 1 << 20)

    monkeypatch.setattr(admission, "examine", examine)
    ids = {name: f"m-{number:016x}" for number, name in enumerate(("one", "two", "three"), 1)}
    for name in ("one", "two"):
        await world.targets.offer(SOURCE, moves.offer(migration=ids[name], container=name))
    await world.targets.discard(SOURCE, ids["one"])
    await world.targets.offer(SOURCE, moves.offer(migration=ids["three"], container="three"))
    assert promised == [[], ["one"], ["two"]]


# --- the lease ---


async def test_a_source_that_is_silent_for_long_is_given_up_before_prepared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "LEASE_SECONDS", 0.0)
    await world.offered()
    await world.ended(DISCARDED)


async def test_every_word_of_the_source_renews_the_lease(world: World) -> None:
    target = await world.offered()
    target.last_contact = 0.0
    await world.targets.alive(SOURCE, ID)
    assert target.last_contact > 0.0
    with pytest.raises(Refused, match="no migration"):
        await world.targets.alive("gamma", ID)


# --- learning the decision; recovery ---


async def test_the_decision_is_read_at_the_broker_where_the_source_does_not_answer(world: World, copy: int) -> None:
    world.asking.source.failing.update(decision=FOR_EVER)
    world.asking.retained = COMMIT
    await world.found(PREPARED, copy)
    await world.ended(DONE)


async def test_one_recovery_that_hangs_does_not_keep_the_others_waiting(world: World, copy: int, gone: int) -> None:
    other = "m-00000000000000aa"
    async with world.copy.held("let-run") as hanging:
        await world.found(RUNNING, copy)
        await hanging.wait()
        await world.found(STAGED, gone, other)
        await world.journal.until(DISCARDED)
        assert await world.phase(other) is DISCARDED
    await world.ended(DONE)


async def test_what_fails_again_and_again_is_logged_once(
    world: World, copy: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.copy.failing.update({"let-run": 5})
    await world.found(RUNNING, copy)
    await world.ended(DONE)
    assert len([line for line in caplog.messages if "can't be unlocked" in line]) == 1
