"""An agent's connection to a real broker, from the first attempt to the last word, whoever of the two goes away."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from agent.base.config import Broker as Settings
from agent.doors import mqtt
from agent.doors.mqtt import Answer, Broker
from agent.doors.mqtt_link import BrokerUnavailable, connect
from protocol import topics
from protocol.commands import Command
from tests.contract.broker_support import HOST, PATIENCE, PING, Connect, agent, event, pong, status, until, within
from tests.contract.conftest import Mosquitto


async def test_broker_that_comes_late_is_found_and_each_change_is_logged_once(
    start_mosquitto: Callable[..., Mosquitto], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(mqtt, "FIRST_PAUSE_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "agent.mqtt")
    attempts = 0

    def count(*args: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return connect(*args, **options)

    monkeypatch.setattr(mqtt, "connect", count)
    mosquitto = start_mosquitto()
    mosquitto.stop()
    async with agent(mosquitto.settings, connected=False) as broker:
        await until(lambda: attempts >= 4)
        mosquitto.start()
        await within(broker.until_connected())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert "Connection refused; trying again (is the broker running" in said[0]
    assert said[1].startswith("connected to the broker at 127.0.0.1:")


async def test_last_will_says_offline_when_the_agent_is_killed(mosquitto: Mosquitto, stranger: Connect) -> None:
    program = f"""
import asyncio, sys
from agent.base.config import Broker as Settings
from agent.doors.mqtt import Broker
from protocol.status import HostStatus

async def main():
    broker = Broker(Settings(host="127.0.0.1", port={mosquitto.port}, tls=False, ca=None), "{HOST}", None)
    broker.publish_retained("{topics.host_status(HOST)}", HostStatus(host="{HOST}", online=True))
    await broker.run()

asyncio.run(main())
"""
    async with stranger(mosquitto) as client:
        await client.subscribe(topics.host_status(HOST))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        try:
            assert (await client.next_json())["online"] is True
        finally:
            process.kill()
            await process.wait()
        assert (await client.next_json())["online"] is False


async def test_clean_end_says_offline_after_everything_else(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with stranger(mosquitto) as client:
        await client.subscribe(topics.ROOT + "/#")
        async with agent(mosquitto.settings) as broker:
            broker.publish_retained(topics.host_status(HOST), status())
            assert (await client.next_json())["online"] is True
            broker.publish(topics.events(HOST), event("agent-stopped"))
        assert (await client.next_json())["kind"] == "agent-stopped"
        assert (await client.next_json())["online"] is False


async def test_close_says_offline_and_leaves_the_rest_to_the_cancel(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings) as broker, stranger(mosquitto) as client:
        await client.subscribe(topics.host_status(HOST))
        await broker.close()
        assert (await client.next_json())["online"] is False
        assert not broker.connected
        await broker.close()


async def test_reply_that_a_handler_gives_while_it_is_cancelled_still_goes_out(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    begun = asyncio.Event()

    async def until_cancelled(command: Command, answer: Answer) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await pong(command, answer)

    async with stranger(mosquitto) as client:
        await client.subscribe("replies")
        async with agent(mosquitto.settings, until_cancelled):
            await client.send(topics.command(HOST), PING, ResponseTopic="replies")
            await within(begun.wait())
        assert (await client.next_json())["command"] == "c-1"


async def test_late_will_of_an_older_connection_is_corrected(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings) as broker, stranger(mosquitto) as client:
        broker.on_host_status(lambda status: asyncio.sleep(0))
        broker.publish_retained(topics.host_status(HOST), status())
        assert await broker.flush(PATIENCE)
        await client.subscribe(topics.host_status(HOST))
        await client.send(topics.host_status(HOST), {"host": HOST, "online": False}, retain=True)
        await client.until(lambda content: not content["online"])
        await client.until(lambda content: content["online"])


async def test_silent_server_is_given_up_and_cancel_is_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.doors.mqtt_link.ACK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = Settings(host="127.0.0.1", port=server.getsockname()[1], tls=False, ca=None)
        with pytest.raises(BrokerUnavailable, match="timed out"):
            async with connect(settings, "x"):
                raise AssertionError
        task = asyncio.create_task(Broker(settings, HOST, pong).run())
        await asyncio.wait({task}, timeout=0.1)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled()


def test_all_of_it_on_uvloop(mosquitto: Mosquitto, stranger: Connect) -> None:
    async def story() -> None:
        async with agent(mosquitto.settings) as broker, stranger(mosquitto) as client:
            await client.subscribe("replies")
            await client.send(topics.command(HOST), PING, ResponseTopic="replies")
            assert (await client.next_json())["command"] == "c-1"
            mosquitto.stop()
            await until(lambda: not broker.connected)
            mosquitto.start()
            await within(broker.until_connected())
            await client_again()

    async def client_again() -> None:
        async with stranger(mosquitto) as client:
            await client.subscribe("replies")
            await client.send(topics.command(HOST), PING, ResponseTopic="replies")
            assert (await client.next_json())["command"] == "c-1"

    uvloop.run(story())
