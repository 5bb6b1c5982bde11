"""Memory and disk that were promised to moves under way are not there for the next one; so many moves and no more."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.checkpoint import proc
from agent.migration import admission
from agent.migration.admission import Reserved
from protocol.errors import ErrorCode, Why
from tests.unit import moves
from tests.unit.moves import TARGET, FakeDocker, FakeJournal, FakeShell

MIB = 1 << 20
NEED = Reserved("next", 300 * MIB, 300 * MIB)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """1 GiB of memory and of disk are free, 256 and 512 MiB of it to be left so; two moves at once."""
    host = moves.host(TARGET, FakeDocker(policy="no"), FakeShell(), FakeJournal(tmp_path / "journal.sqlite"))
    limits = host.settings.limits.model_copy(update={"migrations": 2})

    async def data_root() -> str:
        return str(tmp_path)

    monkeypatch.setattr(host.docker, "data_root", data_root, raising=False)
    monkeypatch.setattr(proc, "memory_available", lambda: 1024 * MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1024, f_frsize=MIB))
    return replace(host, settings=host.settings.model_copy(update={"limits": limits}))


async def codes(host: Any, *others: Reserved) -> list[ErrorCode]:
    return [reason.code for reason in await admission._room(host, NEED, list(others))]


async def test_there_is_room_while_nothing_is_promised(host: Any) -> None:
    assert await codes(host) == []


async def test_promised_memory_is_not_there_for_the_next(host: Any) -> None:
    assert await codes(host, Reserved("other", 500 * MIB, 0)) == [ErrorCode.NO_MEMORY]


async def test_promised_disk_is_not_there_for_the_next(host: Any) -> None:
    assert await codes(host, Reserved("other", 0, 250 * MIB)) == [ErrorCode.NO_SPACE]


async def test_there_is_a_limit_to_moves_at_once(host: Any) -> None:
    assert await codes(host, Reserved("one", 0, 0)) == []
    assert await codes(host, Reserved("one", 0, 0), Reserved("two", 0, 0)) == [ErrorCode.BUSY]


@pytest.mark.parametrize(("mib", "cold", "rounds"), [(250, [], []), (400, [], [Why.NO_MEMORY])])
async def test_rounds_of_pre_copy_need_room_for_the_memory_once_more(
    host: Any, mib: int, cold: list[Why], rounds: list[Why], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of_the_same_kind(*_: object) -> tuple[()]:
        return ()

    monkeypatch.setattr(admission, "_processor", of_the_same_kind)
    offer = moves.offer(memory_bytes=mib * MIB)
    here = admission.Here(host.docker, moves.ENGINE, (), ())
    judged = await admission.judge(host, offer, [], 64 * MIB, here)
    assert [each.why for each in judged.reasons if each.why is Why.NO_MEMORY] == cold
    assert [each.why for each in judged.precopy] == rounds
