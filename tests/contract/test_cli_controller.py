"""The controller against a real broker: what it reads of hosts that tell stories, and when it gives one up."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agent.base.errors import Refused
from agent.cli.controller import Controller, NoAnswer
from agent.doors.mqtt_link import BrokerUnavailable
from protocol import topics
from protocol.commands import Migrate, Ping, ReplyKind
from protocol.errors import ErrorCode
from tests.contract.cli_support import PATIENCE
from tests.contract.conftest import Mosquitto, Stranger
from tests.contract.stories import StoryHost, container

Connect = Callable[..., AbstractAsyncContextManager[Stranger]]


async def test_hosts_and_containers_are_read_at_once(controller: Controller) -> None:
    assert [one.host for one in await controller.hosts()] == ["node-a", "node-b"]
    assert [one.name for one in await controller.containers()] == ["db", "web", "cache"]
    assert [one.name for one in await controller.containers("node-b")] == ["cache"]
    assert await controller.migrations() == []


async def test_five_thousand_containers_are_all_read(mosquitto: Mosquitto) -> None:
    crowd = [container("node-a", f"c{number}").model_copy(update={"id": f"{number:064x}"}) for number in range(5000)]
    async with StoryHost("node-a", mosquitto.settings, crowd).running(), Controller(mosquitto.settings) as controller:
        assert len(await controller.containers()) == 5000


async def test_what_another_version_says_is_left_out_and_named(
    controller: Controller, mosquitto: Mosquitto, stranger: Connect
) -> None:
    async with stranger(mosquitto) as client:
        await client.send(topics.host_status("node-z"), {"version": 9, "host": "node-z"}, retain=True)
    assert [one.host for one in await controller.hosts()] == ["node-a", "node-b"]
    assert controller.unreadable == [topics.host_status("node-z")]


async def test_command_is_asked_and_answered(controller: Controller) -> None:
    reply = await controller.ask("node-a", Ping(id="c-1"))
    assert (reply.kind, reply.host, reply.command, reply.agent_version) == (
        ReplyKind.FINISHED,
        "node-a",
        "c-1",
        "0.1.0",
    )


async def test_long_command_gets_two_replies(controller: Controller) -> None:
    command = Migrate(id="c-1", container="web", to="node-b")
    replies = [reply async for reply in controller.command("node-a", command)]
    assert [reply.kind for reply in replies] == [ReplyKind.ACCEPTED, ReplyKind.FINISHED]
    assert replies[1].report is not None


async def test_host_that_nobody_listens_for_is_refused_at_once(controller: Controller) -> None:
    with pytest.raises(Refused, match="no agent of node-x") as caught:
        await controller.ask("node-x", Ping(id="c-1"))
    assert caught.value.code is ErrorCode.HOST_OFFLINE


async def test_silent_host_is_given_up(
    controller: Controller, mosquitto: Mosquitto, stranger: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.controller.SLACK_SECONDS", 0.2)
    async with stranger(mosquitto) as client:
        await client.subscribe(topics.command("node-x"))
        with pytest.raises(NoAnswer, match="node-x did not answer within 1 s"):
            await controller.ask("node-x", Ping(id="c-1"), patience=1)


async def test_command_for_a_host_that_is_away_expires_at_the_broker(mosquitto: Mosquitto, node_a: StoryHost) -> None:
    async with node_a.running():
        pass
    async with Controller(mosquitto.settings) as controller:
        with pytest.raises(NoAnswer):
            await controller.ask("node-a", Ping(id="c-1"), patience=1)
        async with node_a.running():
            await controller.ask("node-a", Ping(id="c-2"))
    assert [one.id for one in node_a.commands] == ["c-2"]


async def test_no_broker_is_an_error_with_a_hint(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    with pytest.raises(BrokerUnavailable, match="Connection refused") as caught:
        async with Controller(mosquitto.settings):
            raise AssertionError
    assert "is the broker running" in caught.value.hint


async def test_broker_that_stays_away_is_given_up(
    controller: Controller, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.controller.AWAY_SECONDS", 0.1)
    monkeypatch.setattr("agent.cli.controller.PAUSE_SECONDS", 0.1)
    mosquitto.stop()
    watching = controller.watch_migration("m-0123456789abcdef", "node-a")
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(anext(watching), PATIENCE)
