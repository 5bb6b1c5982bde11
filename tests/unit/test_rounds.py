"""Rounds of pre-copy, without CRIU: what is run, sent, linked and taken back, and when each end is chosen."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.base.errors import CorruptPart, NotConverging, Refused, TransferFailed
from agent.checkpoint import criu, dirty, freezer, proc, resume, segments
from agent.checkpoint.criu import CriuOptions
from agent.doors.handover import HandOver
from agent.doors.peer_server import Stream
from agent.migration import rounds
from agent.runtime import handover
from agent.strategy import Memory, dump, precopy
from agent.strategy.convergence import Wishes
from agent.strategy.precopy import PreCopy
from protocol.commands import TcpPolicy
from protocol.peer import SentPart
from protocol.status import Round
from tests.unit import moves
from tests.unit.moves import ID

MIB = 1 << 20
MEMORY = 64 * MIB


class Runc:
    """As the shell runs it: it writes images, and its end can be waited for."""

    def __init__(self, sizes: list[int]) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.mounted: list[str] = []
        self._sizes = iter(sizes)

    async def run(self, *argv: str, **_: Any) -> None:
        self.mounted.append(argv[0])

    async def start(self, *argv: str, **_: Any) -> Any:
        self.commands.append(argv)
        size = next(self._sizes)
        images = Path(argv[argv.index("--image-path") + 1])

        async def wait() -> None:
            await asyncio.sleep(0)
            (images / "pages-1.img").write_bytes(b"x" * size)
            (images / "pagemap-1.img").write_bytes(b"map")

        return SimpleNamespace(wait=wait)


class Peer:
    """Takes rounds, and what follows."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.breaks_at = 0

    async def send_round(self, migration: str, number: int, chunks: AsyncIterator[bytes]) -> SentPart:
        if number == self.breaks_at:
            raise TransferFailed("the link broke")
        size = sum([len(chunk) async for chunk in chunks])
        self.asked.append(f"round {number}")
        return SentPart(name=f"images:{number}", sha256="", bytes=size)

    async def follow(self, migration: str) -> None:
        self.asked.append("follow")

    async def send_files(self, migration: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        self.asked.append(name)


class Progress:
    """What was told."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {"link_rate": 100.0 * MIB, "fixed_ms": 350.0}
        self.paced = True
        self.reason = "as asked"
        self.rounds: list[Round] = []

    def sending(self, part: str) -> None: ...
    def sent(self, count: int) -> None: ...
    async def pace(self, count: int, *, compressed: bool = False) -> None: ...
    def part_done(self, name: str, size: int, began: float, *, frozen: bool) -> None: ...

    async def round_done(self, done: Round) -> None:
        self.rounds.append(done)


class World:
    """A container that leaves so much after each round."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, left: list[int], wishes: Wishes) -> None:
        self.runc, self.peer, self.progress = Runc([5 * MIB] * len(left)), Peer(), Progress()
        self.passes = 0
        self.strategy = PreCopy()
        self.limits: list[float] = []
        leaves = iter(left)
        monkeypatch.setattr(dump, "DUMPS", folder)
        monkeypatch.setattr(precopy, "DUMPS", folder)
        monkeypatch.setattr(freezer, "cgroup_of", lambda pid: freezer.Cgroup(folder, 2))
        monkeypatch.setattr(dirty, "look", lambda pid, tasks: (MEMORY, next(leaves)))
        monkeypatch.setattr(criu, "make_shadow_root", lambda *_: None)
        monkeypatch.setattr(dump.tmpfs, "mount", self._mount)
        monkeypatch.setattr(precopy.Throttle, "limit", lambda _, pid, processors: self.limits.append(processors))
        monkeypatch.setattr(dump.Dump, "start", self._started)
        monkeypatch.setattr(PreCopy, "_open_channel", self._opened)
        self.memory = Memory(
            migration=ID,
            container_id="c" * 64,
            pid=1,
            resident_bytes=MEMORY,
            options=CriuOptions(TcpPolicy.KEEP),
            dump_seconds=10,
            ready_seconds=10,
            shell=cast("Any", self.runc),
            peer=cast("Any", self.peer),
            progress=self.progress,
            wishes=wishes,
        )
        self.last: list[str] = []

    async def _mount(self, shell: object, path: Path, size: int) -> None:
        path.mkdir(parents=True, exist_ok=True)

    async def _started(self, container_id: str, host: str, parent: str = "") -> None:
        self.last = ["dump", parent]

    async def _opened(self, memory: Memory, at: object, parent: str = "") -> None:
        self.last = ["lazy dump", parent]

    async def again(self) -> int:
        self.passes += 1
        return 10

    async def copies(self) -> None:
        try:
            await self.strategy.copy_while_running(self.memory, self.again)
        finally:
            await self.strategy.release(cast("Any", self.runc), ID)

    @property
    def parents(self) -> list[str]:
        commands = self.runc.commands
        return [each[each.index("--parent-path") + 1] if "--parent-path" in each else "" for each in commands]


async def test_rounds_go_on_until_the_rest_fits_and_each_builds_on_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, [40 * MIB, 20 * MIB, MIB], Wishes(max_blackout_ms=500))
    await world.copies()
    assert world.parents == ["", "../round-1", "../round-2"]
    assert all("--pre-dump" in command for command in world.runc.commands)
    assert world.last == ["dump", "round-3"]
    assert world.passes == 3, "files go over in the same loop"
    assert [one.left_bytes for one in world.progress.rounds] == [40 * MIB, 20 * MIB, MIB]
    assert [part.name for part in world.strategy.sent] == ["images:1", "images:2", "images:3"]
    assert not world.strategy.lazy
    assert not world.limits
    assert not list(tmp_path.iterdir())


async def test_what_does_not_fit_is_told_with_the_blackout_that_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, [60 * MIB] * 2, Wishes(max_blackout_ms=500))
    with pytest.raises(NotConverging, match=r"after 2 rounds 60 MiB are left, \d+ ms predicted") as caught:
        await world.copies()
    assert "--throttle" in caught.value.hint
    assert "--allow-postcopy" in caught.value.hint
    assert world.last == []


async def test_it_is_throttled_a_step_a_round_as_far_as_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, [60 * MIB] * 9, Wishes(max_blackout_ms=500, throttle=50))
    with pytest.raises(NotConverging):
        await world.copies()
    assert [one.throttled for one in world.progress.rounds] == [0, 0, 20, 40, 50]
    assert len(world.limits) == 3


async def test_what_is_left_follows_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [60 * MIB] * 2, Wishes(max_blackout_ms=500, postcopy=True))
    await world.copies()
    assert world.strategy.lazy
    assert world.progress.reason == "as asked; after 2 rounds: postcopy, it writes faster than that can be sent"
    assert world.peer.asked == ["round 1", "round 2", "follow"]
    assert world.last == ["lazy dump", "round-2"]


async def test_a_link_that_breaks_ends_it_and_the_round_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, [60 * MIB] * 2, Wishes(max_blackout_ms=500))
    world.peer.breaks_at = 2
    with pytest.raises(TransferFailed):
        await world.copies()
    assert world.strategy._predumps is not None
    assert world.strategy._predumps._command is not None
    assert world.strategy._predumps._command.done()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("breaks_at", [0, 1, 2])
async def test_one_that_sleeps_is_frozen_for_each_round_until_criu_has_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks_at: int
) -> None:
    world = World(tmp_path, monkeypatch, [60 * MIB, MIB], Wishes(max_blackout_ms=500))
    world.peer.breaks_at = breaks_at
    told: list[str] = []

    async def freeze(*_: object) -> None:
        told.append("frozen")

    async def thaw(_: object) -> None:
        assert world.strategy._predumps is not None
        over = world.strategy._predumps._is_over()
        told.append("let go" if over else "let go too soon")

    monkeypatch.setattr(resume, "waits", lambda group: True)
    monkeypatch.setattr(freezer, "freeze", freeze)
    monkeypatch.setattr(resume, "thaw", thaw)
    monkeypatch.setattr(freezer.Cgroup, "tasks", lambda group: [1])
    monkeypatch.setattr(proc, "tasks", lambda pids: [SimpleNamespace(tracer=4711)])
    try:
        await world.copies()
    except TransferFailed:
        assert breaks_at
    assert told == ["frozen", "let go"] * (breaks_at or 2)


async def test_one_that_outgrows_its_room_is_not_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [MIB], Wishes())
    monkeypatch.setattr(dirty, "look", lambda pid, tasks: (MEMORY * 4, MIB))
    with pytest.raises(NotConverging, match="has grown"):
        await world.copies()


# --- the target


def tarball(**files: bytes) -> Stream:
    async def chunks() -> AsyncIterator[bytes]:
        for name, content in files.items():
            yield segments.header(name, 0, len(content)) + content + segments.padding(len(content))
        yield segments.END

    return Stream(chunks())


class Target:
    """The hand-over folder's images, and the commands that are run there."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.ran: list[tuple[str, ...]] = []

    async def run(self, *argv: str, **_: Any) -> None:
        self.ran.append(argv)

    async def take(self, number: int, *, offered: bool = True) -> SentPart:
        here = cast("HandOver", self)
        offer = moves.offer(rounds=offered)
        files = {"pages": b"x" * number, handover.INVENTORY: b"i"}
        return await rounds.take(tarball(**files), cast("Any", self), here, offer, number)


async def test_rounds_become_a_chain_in_which_nothing_is_kept_twice(tmp_path: Path) -> None:
    target = Target(tmp_path)
    names = [(await target.take(number)).name for number in (1, 2, 3)]
    assert names == ["images:1", "images:2", "images:3"]
    rounds.chain(target.images, 3)
    at = target.images
    for expected in (b"xxx", b"xx", b"x"):
        at = at / "parent"
        assert (at / "pages").read_bytes() == expected
        assert (at / handover.INVENTORY).read_bytes() == b"i"
    assert not (at / "parent").exists()
    assert [command[:2] for command in target.ran] == [("criu", "dedup")] * 2, "the first replaces nothing"


async def test_only_the_images_of_the_freeze_are_the_word_that_criu_waits_for(tmp_path: Path) -> None:
    target = Target(tmp_path)
    await target.take(1)
    assert not (target.images / handover.INVENTORY_THERE).exists()
    await target.take(0)
    assert (target.images / handover.INVENTORY_THERE).read_bytes() == b"i"
    assert not (target.images / handover.INVENTORY).exists()


async def test_a_round_that_does_not_belong_there_is_not_taken(tmp_path: Path) -> None:
    target = Target(tmp_path)
    with pytest.raises(Refused, match="not offered for rounds"):
        await target.take(1, offered=False)
    with pytest.raises(CorruptPart, match="without the one before"):
        await target.take(2)
    with pytest.raises(CorruptPart, match="round 1 is not here"):
        rounds.chain(target.images, 1)
    rounds.chain(target.images, 0)
    assert not list(target.images.iterdir())
