"""transship migrate against a real broker and hosts that tell stories: what a person sees, what a script gets."""

import asyncio
from typing import Any

import pytest

from agent.base.errors import AgentError
from agent.cli import migrate
from agent.cli.controller import Controller
from agent.cli.output import FAILED, IN_DOUBT, OK, REFUSED, Out
from protocol.commands import Migrate
from protocol.errors import ErrorCode
from protocol.status import Phase
from tests.contract.cli_support import PATIENCE, lines, moved
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost, container


async def refusal(controller: Controller, **wanted: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        await moved(controller, **wanted)
    return caught.value


async def test_migrate_finds_the_host_and_tells_how_it_went(
    controller: Controller, capsys: pytest.CaptureFixture[str], node_a: StoryHost
) -> None:
    node_a.pace = 0.2
    assert await moved(controller, keep_source=True, tcp="close", max_blackout_ms=500) == OK
    [command] = node_a.commands
    assert isinstance(command, Migrate)
    assert (command.container, command.to, command.source, command.tcp) == ("web", "node-b", "keep", "close")
    accepted, *statuses, result = lines(capsys)
    assert accepted["type"] == "accepted"
    assert {"copying", "frozen", "running"} <= {one["phase"] for one in statuses}
    assert result["type"] == "result"
    assert (result["ok"], result["exit_code"], result["migration"]) == (True, 0, accepted["migration"])
    assert result["blackout_ms"] == result["report"]["blackout_ms"]


async def test_migrate_by_the_beginning_of_an_id(controller: Controller, node_a: StoryHost) -> None:
    assert await moved(controller, container="0202") == OK
    [command] = node_a.commands
    assert isinstance(command, Migrate)
    assert command.container == "db"


async def test_failed_migrate_says_that_the_container_runs_on(
    controller: Controller, capsys: pytest.CaptureFixture[str], node_a: StoryHost
) -> None:
    node_a.fails_at = Phase.PREPARED
    assert await moved(controller) == FAILED
    result = lines(capsys)[-1]
    assert (result["ok"], result["phase"], result["error"]["code"]) == (False, "rolled-back", "restore-failed")
    assert result["error"]["consequence"] == "taken-back"


async def test_migrate_whose_last_reply_is_lost_ends_by_the_retained_status(
    controller: Controller, node_a: StoryHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LAST_REPLY_SECONDS", 0.05)
    node_a.lose_replies = True
    assert await moved(controller) == OK
    node_a.fails_at = Phase.FROZEN
    assert await moved(controller) == FAILED


async def test_migrate_goes_on_through_a_restart_of_the_broker(
    controller: Controller, mosquitto: Mosquitto, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COPYING
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(moved(controller))
        await node_a.held.wait()
        mosquitto.stop(forget=True)
        while node_a.broker.connected:
            await asyncio.sleep(0.005)
        node_a.go.set()
        mosquitto.start()
        assert await task == OK
    assert lines(capsys)[-1]["ok"] is True


async def test_detached_migrate_does_not_wait(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COPYING
    assert await moved(controller, detach=True) == OK
    assert [one["type"] for one in lines(capsys)] == ["accepted"]
    node_a.go.set()


async def test_migrate_that_takes_too_long_is_in_doubt_for_a_script(controller: Controller, node_a: StoryHost) -> None:
    node_a.hold = Phase.COPYING
    error = await refusal(controller, timeout=0.3)
    assert "goes on" in error.message
    assert Out(as_json=True).error(error.info()) == IN_DOUBT
    node_a.go.set()


@pytest.mark.parametrize(
    ("wanted", "code", "said", "hint"),
    [
        (
            {"container": "wep"},
            ErrorCode.NO_SUCH_CONTAINER,
            "no host has a container wep",
            "did you mean web on node-a",
        ),
        ({"source": "node-x"}, ErrorCode.NO_SUCH_HOST, "there is no host node-x", "known hosts: node-a, node-b"),
        ({"source": "node-b"}, ErrorCode.NO_SUCH_CONTAINER, "there is no container web on node-b", ""),
        ({"to": "node-a"}, ErrorCode.SAME_HOST, "web is on node-a already", ""),
        (
            {"strategy": "warm"},
            ErrorCode.BAD_COMMAND,
            'strategy is "warm": it must be auto, cold, precopy or postcopy',
            "",
        ),
        ({"to": "Node B"}, ErrorCode.BAD_COMMAND, 'to is "Node B"', ""),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_migrate_is_refused_with_a_hint(
    controller: Controller, wanted: dict[str, Any], code: ErrorCode, said: str, hint: str
) -> None:
    error = await refusal(controller, **wanted)
    assert error.code is code
    assert said in error.message
    assert hint in error.hint
    assert Out(as_json=True).error(error.info()) == REFUSED


async def test_name_on_two_hosts_is_refused_and_from_chooses(controller: Controller, mosquitto: Mosquitto) -> None:
    twin = StoryHost("node-c", mosquitto.settings, [container("node-c", "web", 9, "exited")])
    async with twin.running():
        error = await refusal(controller)
        assert "2 containers are meant" in error.message
        assert "web (010101010101, running) on node-a; web (090909090909, exited) on node-c" in error.hint
        assert await moved(controller, source="node-a") == OK
    error = await refusal(controller, container="0909")
    assert (error.code, error.message) == (ErrorCode.HOST_OFFLINE, "node-c, which has web, is offline")
