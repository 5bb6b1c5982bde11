"""What an agent hears of the others at a real broker: how they are, and what a migration's source has decided."""

import asyncio

import pytest

from agent.doors.mqtt import Broker
from protocol import topics
from protocol.status import HostStatus
from tests.contract.broker_support import (
    HOST,
    MIGRATION,
    PATIENCE,
    Connect,
    agent,
    notice,
    pong,
    running,
    until,
    within,
)
from tests.contract.conftest import Mosquitto


async def test_other_hosts_are_heard(mosquitto: Mosquitto, stranger: Connect) -> None:
    heard: asyncio.Queue[HostStatus] = asyncio.Queue()
    broker = Broker(mosquitto.settings, HOST, pong)
    broker.on_host_status(heard.put)
    async with stranger(mosquitto) as client:
        await client.send(topics.host_status("node-b"), {"host": "node-b", "online": True}, retain=True)
        await client.send(topics.host_status("node-c"), {"host": "node-b", "online": False}, retain=True)  # a lie
        await client.send(topics.host_status("node-d"), b"garbage", retain=True)
        async with running(broker):
            first = await within(heard.get())
            await client.send(topics.host_status("node-b"), {"host": "node-b", "online": False}, retain=True)
            second = await within(heard.get())
    assert [(one.host, one.online) for one in (first, second)] == [("node-b", True), ("node-b", False)]


async def test_retained_decision_is_found(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with stranger(mosquitto) as client, agent(mosquitto.settings) as broker:
        await client.send(topics.decision(MIGRATION, "node-b"), notice().model_dump(mode="json"), retain=True)
        for _ in range(2):  # a second question finds it too
            assert (await within(broker.await_decision(MIGRATION, "node-b"))).decision == "commit"


async def test_decision_is_waited_for_through_lies_and_a_restart_of_the_broker(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    topic = topics.decision(MIGRATION, "node-b")
    async with agent(mosquitto.settings) as broker:
        waiting = [asyncio.create_task(broker.await_decision(MIGRATION, "node-b")) for _ in range(2)]
        async with stranger(mosquitto) as client:
            await client.send(topic, b"garbage", retain=True)
            await client.send(topic, notice(source="node-c").model_dump(mode="json"), retain=True)
            await client.send(topic, notice(migration="m-ffffffffffffffff").model_dump(mode="json"), retain=True)
            await client.send(topic, b"", retain=True)
        mosquitto.stop()
        await until(lambda: not broker.connected)
        waiting.append(asyncio.create_task(broker.await_decision(MIGRATION, "node-b")))
        mosquitto.start()
        await within(broker.until_connected())
        assert not any(task.done() for task in waiting)
        async with stranger(mosquitto) as client:
            await client.send(topic, notice().model_dump(mode="json"), retain=True)
        assert [one.source for one in await within(asyncio.gather(*waiting))] == ["node-b"] * 3


async def test_cancelled_wait_for_a_decision_leaves_nothing(mosquitto: Mosquitto) -> None:
    async with agent(mosquitto.settings) as broker:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await broker.await_decision(MIGRATION, "node-b")
        assert await broker.flush(PATIENCE)
        assert broker._decisions == {}
