"""The one evacuation of a host: what it does when its file can't be written, and the cordon of a shutdown."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base import durable
from agent.migration.cordon import Cordon
from agent.migration.host import Host
from agent.migration.sources import Peers, Sources
from agent.shutdown import survey
from agent.shutdown.evacuation import Around
from agent.shutdown.evacuations import Evacuations
from agent.shutdown.moving_away import MovesAway
from protocol.base import new_command_id, utc_now
from protocol.commands import Evacuate
from protocol.evacuation import EvacuationState, EvacuationStatus
from tests.unit import moves
from tests.unit.test_evacuation_rows import Told


class EmptyDocker:
    async def list(self) -> list[Any]:
        return []


def evacuations(folder: Path, told: Told) -> Evacuations:
    settings = moves.settings().model_copy(update={"state_dir": folder})
    host = Host(settings, cast("Any", EmptyDocker()), cast("Any", None), cast("Any", None))
    return Evacuations(Around(host, cast("Sources", None), cast("survey.Hosts", None), cast("Peers", None)), told)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without containers."""

    async def alive(*_: object) -> list[str]:
        return []

    async def look(*_: object) -> list[Any]:
        return []

    async def engine(_: Host) -> None:
        return None

    monkeypatch.setattr(survey, "alive", alive)
    monkeypatch.setattr(survey, "look", look)
    monkeypatch.setattr(Host, "engine", engine)


@pytest.mark.usefixtures("nobody")
async def test_a_disk_that_is_full_ends_it_and_the_next_one_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    subject, ended = evacuations(tmp_path, told), asyncio.Event()
    write, left = durable.write, [1]

    def full(path: Path, text: str) -> None:
        if path.name == "evacuation.json":
            if not left:
                raise OSError(28, "No space left on device")
            left.pop()
        write(path, text)

    async def heard(command: str, status: EvacuationStatus) -> None:
        await told.ended(command, status)
        ended.set()

    monkeypatch.setattr(durable, "write", full)
    command = Evacuate(id=new_command_id())
    await subject.begin(await subject.order(command), command.id, heard)
    async with asyncio.timeout(5):
        await ended.wait()
    [(whose, status)] = told.ends
    assert whose == command.id
    assert status.state is EvacuationState.CANCELLED
    assert "No space left" in str(status.error)
    assert told.statuses[-1].state is EvacuationState.CANCELLED, "who watches is told, too"
    monkeypatch.setattr(durable, "write", write)
    again = Evacuate(id=new_command_id())
    status = await subject.evacuate(await subject.order(again))
    assert status.state is EvacuationState.DONE


@pytest.mark.usefixtures("nobody")
async def test_a_shutdown_leaves_a_persons_cordon_as_it_is(tmp_path: Path) -> None:
    subject = evacuations(tmp_path, Told())
    subject.put_cordon("its memory is being changed")
    away = MovesAway(subject, 1)
    away.begins()
    assert await away(frozenset(), 5.0) == {}
    found = subject.cordon()
    assert found is not None
    assert (found.why, found.boot) == ("its memory is being changed", "")
    away.stays()
    assert subject.cordon() == found


@pytest.mark.usefixtures("nobody")
async def test_the_cordon_of_a_shutdown_goes_when_it_is_called_off_also_after_a_restart_of_the_agent(
    tmp_path: Path,
) -> None:
    first = evacuations(tmp_path, Told())
    MovesAway(first, 1).begins()
    assert first.cordon() is not None
    second = evacuations(tmp_path, Told())
    MovesAway(second, 1).stays()
    assert second.cordon() is None


@pytest.mark.usefixtures("nobody")
async def test_a_shutdown_in_the_middle_of_an_evacuation_lets_that_end_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it moves is moved by nobody else; one that does not end is cut short."""
    looked, alive = asyncio.Event(), survey.alive

    async def slow(host: Host, only: Any = None) -> list[str]:
        if only is None:
            looked.set()
            await asyncio.sleep(0.05)
        return await alive(host, only)

    monkeypatch.setattr(survey, "alive", slow)
    subject, ends = evacuations(tmp_path, Told()), []

    async def heard(command: str, status: EvacuationStatus) -> None:
        ends.append(status.state)

    await subject.begin(await subject.order(Evacuate(id=new_command_id())), "theirs", heard)
    await looked.wait()
    left = await MovesAway(subject, 1)(frozenset({"one"}), 20.0)
    assert set(left) == {"one"}, "what was not looked at has not gone"
    assert ends == [EvacuationState.DONE], "first theirs, then ours"


def test_a_text_is_put_in_place_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    durable.write(path, "first")
    durable.write(path, "second")
    assert path.read_text() == "second"
    assert [one.name for one in tmp_path.iterdir()] == ["kept.json"]

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.write(path, "third")
    assert path.read_text() == "second", "what is not on the disk takes no other's place"


def test_a_cordon_is_what_was_put(tmp_path: Path) -> None:
    subject = evacuations(tmp_path, Told())
    assert subject.cordon() is None
    subject.put_cordon("on request")
    assert subject.cordon() == Cordon("on request", cast("Cordon", subject.cordon()).at)
    assert cast("Cordon", subject.cordon()).at <= utc_now().isoformat()
