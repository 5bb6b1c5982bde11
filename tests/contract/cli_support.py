"""A migration that a person asks for at the command line, and the lines that a program reads from it."""

import asyncio
import json
from typing import Any

import pytest

from agent.cli import migrate
from agent.cli.controller import Controller
from agent.cli.migrate import Wanted
from agent.cli.output import OK, Out
from protocol.status import Phase
from tests.contract.stories import StoryHost

PATIENCE = 20.0


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def moved(controller: Controller, **wanted: Any) -> int:
    return await migrate.migrate(
        controller, Out(as_json=True), Wanted(**{"container": "web", "to": "node-b", **wanted})
    )


async def held(controller: Controller, host: StoryHost, phase: Phase) -> str:
    """A migration that its source holds in this phase."""
    host.hold = phase
    assert await moved(controller, detach=True) == OK
    [migration] = host.open
    async with asyncio.timeout(PATIENCE):
        await host.held.wait()
    return migration
