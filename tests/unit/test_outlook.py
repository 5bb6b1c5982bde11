"""The outlook of containers: found anew by what happens, by nothing else, and never in the way of a move."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from agent.check import keeper
from agent.check.keeper import Keeper
from agent.check.question import Looked, Questions
from agent.doors.docker_events import DockerEvent
from protocol.check import PeerCheck, Verdict
from protocol.errors import ErrorCode, Reason, Why
from protocol.reasons import against
from protocol.status import Engine, HostStatus
from tests.unit import moves

A, B = "a" * 64, "b" * 64
BETA = HostStatus(host="beta", online=True, engine=Engine(docker="28"))
BUSY = against(Why.EXEC_SESSION, "an exec runs")
AWAY = Reason(code=ErrorCode.PEER_UNREACHABLE, message="no answer")


class Room:
    """A keeper whose questions are answered at once, and noted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: list[str] = []
        self.here: dict[str, tuple[Reason, ...]] = {}
        self.there: tuple[Reason, ...] = ()
        self.moving = False
        self.said = asyncio.Event()
        self.keeper = Keeper(cast("Questions", self), lambda: self.moving, self._tell, "alpha")

    def _tell(self, container_id: str) -> None:
        self.told.append(container_id[0])
        self.said.set()

    def others(self) -> list[str]:
        return ["beta"]

    async def look(self, container_id: str, *, measured: bool) -> Looked:
        assert not measured
        self.asked.append(f"look {container_id[0]}")
        return Looked(container_id, "web", self.here.get(container_id, ()), moves.offer(container_id=container_id))

    async def rate(self, name: str) -> float:
        self.asked.append(f"rate {name}")
        return 1e9

    async def ask(self, name: str, looked: Sequence[Looked], rate: float | None) -> dict[str, PeerCheck]:
        assert all(found.offer is not None for found in looked)
        self.asked.append(f"ask {name} {''.join(found.id[0] for found in looked)}")
        verdict = Verdict.NO if self.there else Verdict.YES
        blackout = {} if self.there else {"cold": 352.4}
        answer = PeerCheck(host=name, verdict=verdict, blackout_ms=blackout, reasons=self.there)
        return {found.id: answer for found in looked}

    async def happens(self, action: str, container_id: str = A) -> None:
        await self.keeper.on_event(DockerEvent("container", action, "", container_id, "web", {}, 0))

    async def until(self, so: Any) -> None:
        async with asyncio.timeout(moves.WATCHDOG_SECONDS):
            while not so():
                self.said.clear()
                await self.said.wait()

    def verdict(self, container_id: str = A) -> Verdict | None:
        found = self.keeper.outlook(container_id)
        return found.peers["beta"].verdict if found is not None and "beta" in found.peers else None


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(keeper, "CROWD_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "PEER_SECONDS", 0.0)
    found = Room()
    task = asyncio.create_task(found.keeper.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_container_that_starts_is_looked_at_and_its_peers_are_asked(room: Room) -> None:
    await room.happens("start")
    await room.until(lambda: room.verdict() is Verdict.YES)
    found = room.keeper.outlook(A)
    assert found is not None
    assert found.peers["beta"].blackout_ms == {"cold": 350}
    assert room.asked == ["look a", "rate beta", "ask beta a"]


async def test_events_that_come_together_are_answered_by_one_look(room: Room) -> None:
    for _ in range(3):
        await room.happens("connect")
    await room.happens("update")
    await room.until(lambda: room.verdict() is not None)
    assert room.asked.count("look a") == 1


async def test_what_changes_nothing_is_not_told(room: Room) -> None:
    room.keeper.listed([A, B])
    await room.until(lambda: room.verdict(A) is not None and room.verdict(B) is not None)
    told = len(room.told)
    await room.happens("update")
    room.there = (against(Why.PORT_TAKEN, "taken"),)
    await room.happens("update", B)
    await room.until(lambda: room.verdict(B) is Verdict.NO)
    assert room.told[told:].count("a") <= 1, "only its peer has another answer now"


async def test_probes_and_execs_are_no_reason_to_look(room: Room) -> None:
    for action in ("exec_create", "exec_start", "exec_die", "health_status", "top"):
        await room.happens(action)
    await room.happens("start", B)
    await room.until(lambda: room.verdict(B) is not None)
    assert "look a" not in room.asked


async def test_the_end_of_an_exec_that_was_in_the_way_is(room: Room) -> None:
    room.here[A] = (BUSY,)
    await room.happens("start")
    await room.until(lambda: room.verdict() is not None)
    room.here.clear()
    await room.happens("exec_die")
    await room.until(lambda: (found := room.keeper.outlook(A)) is not None and not found.reasons)


async def test_a_container_that_ends_has_no_outlook(room: Room) -> None:
    await room.happens("start")
    await room.until(lambda: room.verdict() is not None)
    await room.happens("die")
    assert room.keeper.outlook(A) is None
    assert room.told[-1] == "a"


async def test_a_peer_that_has_become_another_is_asked_about_all_without_a_look(room: Room) -> None:
    room.keeper.listed([A, B])
    room.keeper.heard(BETA)
    await room.until(lambda: room.verdict(A) is not None and room.verdict(B) is not None)
    looks = [asked for asked in room.asked if asked.startswith("look")]
    room.there = (against(Why.CORDONED, "cordoned"),)
    room.keeper.heard(BETA.model_copy(update={"cordoned": True}))
    await room.until(lambda: room.verdict(A) is Verdict.NO and room.verdict(B) is Verdict.NO)
    assert [asked for asked in room.asked if asked.startswith("look")] == looks
    assert room.asked[-1] == "ask beta ab"


async def test_a_peer_that_says_the_same_again_is_not_asked(room: Room) -> None:
    room.keeper.listed([A])
    room.keeper.heard(BETA)
    await room.until(lambda: room.verdict() is not None)
    asked = room.asked.count("ask beta a")
    room.keeper.heard(BETA.model_copy(update={"memory_free_bytes": 4711}))
    room.keeper.heard(HostStatus(host="stranger", online=True))
    await room.happens("start", B)
    await room.until(lambda: room.verdict(B) is not None)
    assert room.asked.count("ask beta a") == asked


async def test_other_containers_over_there_are_asked_about_some_time_later(room: Room) -> None:
    room.keeper.listed([A])
    room.keeper.heard(BETA)
    await room.until(lambda: room.verdict() is not None)
    room.there = (against(Why.NAME_TAKEN, "taken"),)
    room.keeper.heard(BETA.model_copy(update={"running": 7}))
    await room.until(lambda: room.verdict() is Verdict.NO)


async def test_a_peer_that_did_not_answer_is_asked_again(room: Room) -> None:
    room.there = (AWAY,)
    await room.happens("start")
    await room.until(lambda: room.verdict() is Verdict.NO)
    room.there = ()
    await room.until(lambda: room.verdict() is Verdict.YES)


async def test_nothing_is_done_while_a_move_is_under_way(room: Room) -> None:
    room.moving = True
    await room.happens("start")
    for _ in range(20):
        await asyncio.sleep(0)
    assert room.asked == []
    room.moving = False
    room.keeper.wake()
    await room.until(lambda: room.verdict() is Verdict.YES)


async def test_what_stands_against_it_here_stands_against_every_host(room: Room) -> None:
    await room.happens("start")
    await room.until(lambda: room.verdict() is Verdict.YES)
    room.here[A] = (BUSY,)
    room.there = (against(Why.PORT_TAKEN, "taken"),)
    await room.happens("update")
    await room.until(lambda: room.verdict() is Verdict.NO)
    found = room.keeper.outlook(A)
    assert found is not None
    assert found.reasons == ("exec-session",)
