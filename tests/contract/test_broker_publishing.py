"""What an agent says at a real broker: the newest word stays there, and what is lost is counted."""

import asyncio
import logging

import pytest

from agent.doors.mqtt_link import connect
from protocol import topics
from protocol.status import HostStatus
from tests.contract.broker_support import (
    HOST,
    MIGRATION,
    PATIENCE,
    Connect,
    agent,
    event,
    notice,
    retained,
    status,
    until,
    within,
)
from tests.contract.conftest import Mosquitto


async def test_retained_state_is_said_again_after_the_broker_lost_its_memory(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    async with agent(mosquitto.settings) as broker:
        broker.publish_retained(topics.host_status(HOST), status(1))
        broker.publish_retained(topics.container_status(HOST, "a"), event("a"))
        broker.publish_retained(topics.container_status(HOST, "b"), event("b"))
        broker.publish_retained(topics.decision(MIGRATION, HOST), notice(), expiry=3600)
        assert await broker.flush(PATIENCE)
        mosquitto.stop(forget=True)
        await until(lambda: not broker.connected)
        broker.publish_retained(topics.host_status(HOST), status(7))
        broker.publish_retained(topics.host_status(HOST), status(8))
        broker.clear(topics.container_status(HOST, "a"))
        mosquitto.start()
        await within(broker.until_connected())
        assert await broker.flush(PATIENCE)
        found = await retained(mosquitto, stranger, topics.ROOT + "/#")
    assert set(found) == {
        topics.host_status(HOST),
        topics.container_status(HOST, "b"),
        topics.decision(MIGRATION, HOST),
    }
    assert HostStatus.model_validate_json(found[topics.host_status(HOST)]).running == 8


async def test_newest_word_wins_and_older_ones_are_not_said_late(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings) as broker, stranger(mosquitto) as client:
        await client.subscribe(topics.host_status(HOST))
        for number in range(1000):
            broker.publish_retained(topics.host_status(HOST), status(number))
        seen = [(await client.next_json())["running"]]
        while seen[-1] != 999:
            seen.append((await client.next_json())["running"])
    assert seen == sorted(seen)
    assert len(seen) < 10


async def test_cleared_topic_is_empty_at_the_broker(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings) as broker:
        broker.publish_retained(topics.container_status(HOST, "a"), event("a"))
        assert await broker.flush(PATIENCE)
        broker.publish_retained(topics.container_status(HOST, "a"), None)
        assert await broker.flush(PATIENCE)
        assert await retained(mosquitto, stranger, topics.ALL_CONTAINERS) == {}


async def test_set_retained_clears_what_an_earlier_life_of_the_agent_left(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    mine = topics.container_status(HOST, "+")
    async with agent(mosquitto.settings) as broker:
        broker.publish_retained(topics.container_status(HOST, "old"), event("old"))
        broker.publish_retained(topics.container_status(HOST, "both"), event("both"))
        assert await broker.flush(PATIENCE)
    async with stranger(mosquitto) as client:
        await client.send(topics.container_status("node-b", "theirs"), {}, retain=True)
        await client.subscribe(topics.container_status(HOST, "old"))
        await client.next()
        async with agent(mosquitto.settings) as broker:
            broker.set_retained(mine, {topics.container_status(HOST, "both"): event("both")})
            assert await client.next_json() is None
            broker.publish_retained(topics.container_status(HOST, "new"), event("new"))
            assert await broker.flush(PATIENCE)
            broker.set_retained(mine, {topics.container_status(HOST, "both"): event("both")})
            assert await broker.flush(PATIENCE)
            found = await retained(mosquitto, stranger, topics.ALL_CONTAINERS)
    assert set(found) == {topics.container_status(HOST, "both"), topics.container_status("node-b", "theirs")}


async def test_three_thousand_containers_are_said_within_seconds(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings) as broker:
        broker.set_retained(
            topics.container_status(HOST, "+"),
            {topics.container_status(HOST, str(number)): event(str(number)) for number in range(3000)},
        )
        assert await broker.flush(PATIENCE)
        async with connect(mosquitto.settings, "counter") as link:
            await link.subscribe(topics.ALL_CONTAINERS, qos=0)
            found = set()
            async with asyncio.timeout(PATIENCE):
                async for message in link.messages():
                    found.add(message.topic)
                    if len(found) == 3000:
                        break


async def test_events_are_dropped_and_counted_while_the_broker_is_away(
    mosquitto: Mosquitto, stranger: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent.mqtt")
    async with agent(mosquitto.settings) as broker:
        mosquitto.stop()
        await until(lambda: not broker.connected)
        broker.publish(topics.events(HOST), event("lost"))
        broker.publish(topics.events(HOST), event("lost"))
        assert broker.dropped == 2
        mosquitto.start()
        async with stranger(mosquitto) as client:
            await client.subscribe(topics.events(HOST))
            await within(broker.until_connected())
            broker.publish(topics.events(HOST), event("seen"))
            assert (await client.next_json())["kind"] == "seen"
    assert "2 events or replies were lost" in caplog.text
