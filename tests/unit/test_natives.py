"""Docker's own checkpoints on their way between hosts: what an agent that was killed has left of them is removed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.config import Settings
from agent.base.shell import Shell
from agent.doors.docker import Docker
from agent.migration.host import Host
from agent.migration.journal import Journal
from agent.vault.natives import Natives
from tests.unit.moves import SOURCE, FakeDocker, FakeShell


@pytest.fixture
async def natives(tmp_path: Path) -> AsyncIterator[Natives]:
    settings = Settings.model_validate({"host": SOURCE, "state_dir": tmp_path})
    journal = Journal(tmp_path / "journal.sqlite")
    host = Host(settings, cast("Docker", FakeDocker()), cast("Shell", FakeShell()), journal)
    none: Any = None
    made = Natives(host, none, none)
    yield made
    await made.close()


def test_what_was_on_its_way_when_an_agent_was_killed_takes_no_room(tmp_path: Path, natives: Natives) -> None:
    natives.sweep()  # nothing is there yet
    killed = natives._file("m-0123456789abcdef")
    left = killed.__enter__()  # and never leaves
    left.write_bytes(b"a container's memory")
    natives.sweep()
    assert not left.exists()
    with natives._file("m-0123456789abcdef") as file:
        file.touch()
    assert not file.exists()
