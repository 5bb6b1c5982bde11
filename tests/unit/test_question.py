"""`check` before pretended peers: all reasons of both sides at once, and an answer for every host, whatever it says."""

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.base.errors import Refused, TransferFailed
from agent.check import question
from agent.check.question import Questions
from agent.migration import choosing, compression, preflight
from agent.migration.compression import Chosen
from agent.migration.preflight import Examined
from protocol.base import new_command_id, utc_now
from protocol.check import ContainerCheck, PeerCheck, Verdict
from protocol.commands import Check
from protocol.errors import ErrorCode, Reason, Why
from protocol.peer import Against, Offer, Probed
from protocol.reasons import against
from protocol.status import Engine, HostStatus
from tests.unit import moves

TAKEN, TTY = against(Why.PORT_TAKEN, "taken"), against(Why.TERMINAL, "tty")
LAZY = against(Why.NO_POSTCOPY, "no userfaultfd")
NO_ROOM, NO_MARKS = against(Why.NO_MEMORY, "2 GiB are needed"), against(Why.NO_PRECOPY, "no marks")


class Peer:
    """Says of each offer what it is told to."""

    def __init__(self, name: str, *, said: Against | None = None, link: bool = True) -> None:
        self.name, self.said, self.link = name, said or Against(), link
        self.offers: list[Offer] = []
        self.questions = 0

    async def __aenter__(self) -> "Peer":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def probe(self, migration: str) -> Probed:
        if not self.link:
            raise TransferFailed("the link broke")
        return Probed(rate=1e9)

    async def check(self, migration: str, offers: Sequence[Offer]) -> tuple[Against, ...]:
        self.questions += 1
        self.offers += offers
        return tuple(self.said for _ in offers)


class Room:
    """A host with containers, and its peers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *peers: Peer, names: Sequence[str] = ("web",)) -> None:
        self.peers = {peer.name: peer for peer in peers}
        self.here: tuple[Reason, ...] = ()
        self.precopy: tuple[Reason, ...] = ()
        self.moving: Any = None
        self.statuses = {
            name: HostStatus(host=name, online=True, engine=Engine(docker="28")) for name in (*self.peers, "alpha")
        }
        settings = moves.settings().model_copy(
            update={"peer": moves.settings().peer.model_copy(update={"allow": ("alpha", *self.peers, "stranger")})}
        )
        self.names = {f"{number:064x}": name for number, name in enumerate(names)}
        docker = SimpleNamespace(find=self.find, list=self.list)
        host = SimpleNamespace(name="alpha", docker=docker, settings=settings, journal=None)
        monkeypatch.setattr(preflight, "look_at", self.look_at)
        monkeypatch.setattr(compression, "choose", self.choose)
        monkeypatch.setattr(choosing, "shown", self.shown)
        get = self.peers.__getitem__
        hosts = SimpleNamespace(status=self.statuses.get)
        self.questions = Questions(cast("Any", host), cast("Any", hosts), cast("Any", get), lambda _: self.moving)

    async def find(self, ref: str) -> Any:
        found = {**self.names, **{name: name for name in self.names.values()}}
        by_name = {name: one for one, name in self.names.items()}
        return SimpleNamespace(id=by_name.get(ref, ref), name=found[ref]) if ref in found else None

    async def list(self) -> Any:
        return [SimpleNamespace(id=one, name=name, state="running") for one, name in self.names.items()]

    async def look_at(self, host: Any, request: Any, migration: str, *, measured: bool) -> Examined:
        subject = SimpleNamespace(
            cgroup=SimpleNamespace(tasks=lambda: [1]),
            offer=moves.offer(source="alpha", container_id=request.container, memory_bytes=1 << 20),
            notes=("a note",),
            against_precopy=self.precopy,
        )
        return Examined(cast("Any", SimpleNamespace(name="web")), self.here, cast("Any", subject))

    async def choose(self, request: Any, rate: float, pids: Any) -> Chosen:
        return Chosen(rate=rate)

    async def shown(self, journal: Any) -> dict[str, float]:
        return {"cold": 100.0}

    async def ask(self, **wanted: Any) -> tuple[ContainerCheck, ...]:
        return await self.questions.check(Check(id=new_command_id(), **wanted))

    async def of(self, name: str) -> PeerCheck:
        [one] = await self.ask(container="web", to=name)
        [peer] = one.peers
        return peer


async def test_a_host_that_takes_it_by_any_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    beta = Peer("beta")
    found = await Room(monkeypatch, beta).of("beta")
    assert (found.verdict, set(found.blackout_ms)) == (Verdict.YES, {"cold", "precopy", "postcopy"})
    assert found.blackout_ms["cold"] == pytest.approx(100, abs=5), "by what its last moves have shown"
    [offer] = beta.offers
    assert offer.target == "beta"
    assert offer.sent_at is not None
    assert utc_now() - offer.sent_at < timedelta(seconds=60)


async def test_a_host_without_postcopy_takes_it_cold_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await Room(monkeypatch, Peer("beta", said=Against(postcopy=(LAZY,)))).of("beta")
    assert (found.verdict, found.reasons) == (Verdict.COLD, (LAZY,))
    assert set(found.blackout_ms) == {"cold", "precopy"}


async def test_pre_copy_is_predicted_where_both_sides_can(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, Peer("beta", said=Against(precopy=(NO_ROOM,))), Peer("gamma"))
    there = await room.of("beta")
    assert (there.verdict, set(there.blackout_ms), there.reasons) == (Verdict.YES, {"cold", "postcopy"}, ())
    assert set((await room.of("gamma")).blackout_ms) == {"cold", "precopy", "postcopy"}
    room.precopy = (NO_MARKS,)
    assert set((await room.of("gamma")).blackout_ms) == {"cold", "postcopy"}


async def test_reasons_of_both_sides_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, Peer("beta", said=Against(reasons=(TAKEN,), postcopy=(LAZY,))))
    room.here = (TTY,)
    [one] = await room.ask(container="web")
    assert one.reasons == (TTY,)
    by_host = {peer.host: peer for peer in one.peers}
    assert (by_host["beta"].verdict, by_host["beta"].reasons) == (Verdict.NO, (TAKEN,))


async def test_every_host_has_an_answer_whatever_is_wrong_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, Peer("beta"), Peer("cut", link=False), Peer("off"), Peer("dockerless"))
    room.statuses["off"] = HostStatus(host="off", online=False)
    room.statuses["dockerless"] = HostStatus(host="dockerless", online=True, engine=Engine(docker=""))
    [one] = await room.ask(container="web")
    codes = {peer.host: [reason.name for reason in peer.reasons] for peer in one.peers}
    assert codes == {
        "beta": [],
        "cut": [ErrorCode.TRANSFER_FAILED],
        "dockerless": [ErrorCode.DOCKER_UNAVAILABLE],
        "off": [ErrorCode.HOST_OFFLINE],
        "stranger": [ErrorCode.NO_SUCH_HOST],
    }
    assert (await room.of("nobody")).reasons[0].code is ErrorCode.PEER_NOT_ALLOWED


async def test_many_are_asked_about_in_a_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    beta = Peer("beta")
    names = [f"c{number:03}" for number in range(2 * question.BATCH + 1)]
    found = await Room(monkeypatch, beta, names=names).ask(to="beta")
    assert [one.container for one in found] == names
    assert beta.questions == 3
    assert all(one.peers[0].verdict is Verdict.YES for one in found)


async def test_one_that_is_being_moved_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, Peer("beta"))
    room.moving = SimpleNamespace(id=moves.ID, container="web")
    [one] = await room.ask(container="web", to="beta")
    assert [reason.code for reason in one.reasons] == [ErrorCode.BUSY]
    assert one.peers[0].verdict is Verdict.NO


@pytest.mark.parametrize(
    ("wanted", "code"),
    [({"container": "nobody"}, ErrorCode.NO_SUCH_CONTAINER), ({"to": "alpha"}, ErrorCode.SAME_HOST)],
)
async def test_a_question_about_what_is_not_there_is_refused(
    wanted: dict[str, str], code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused) as caught:
        await Room(monkeypatch, Peer("beta")).ask(**wanted)
    assert caught.value.code is code
