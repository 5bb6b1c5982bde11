"""The agent at a real broker: nothing it says is lost, nothing it is asked goes unanswered, whatever happens to it."""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import uvloop

from agent.base.config import Broker as Settings
from agent.base.errors import Refused
from agent.doors import mqtt
from agent.doors.mqtt import Answer, Broker
from agent.doors.mqtt_link import BrokerUnavailable, connect
from protocol import topics
from protocol.base import utc_now
from protocol.commands import Command, Reply, ReplyKind
from protocol.errors import ErrorCode
from protocol.status import DecisionNotice, Event, HostStatus
from tests.contract.conftest import Mosquitto, Stranger

Connect = Callable[..., AbstractAsyncContextManager[Stranger]]

HOST = "node-a"
MIGRATION = "m-0123456789abcdef"
PATIENCE = 10.0
PING = {"version": 1, "kind": "ping", "id": "c-1"}


def event(kind: str) -> Event:
    return Event(host=HOST, at=utc_now(), kind=kind)


def status(running: int = 0) -> HostStatus:
    return HostStatus(host=HOST, online=True, running=running)


def notice(migration: str = MIGRATION, source: str = "node-b") -> DecisionNotice:
    return DecisionNotice(migration=migration, source=source, target=HOST, decision="commit", at=utc_now())


async def pong(command: Command, answer: Answer) -> None:
    await answer(Reply(kind=ReplyKind.FINISHED, host=HOST, command=command.id, at=utc_now()))


@asynccontextmanager
async def agent(
    settings: Settings, handler: mqtt.Handler = pong, *, connected: bool = True, host: str = HOST
) -> AsyncIterator[Broker]:
    broker = Broker(settings, host, handler)
    async with running(broker, connected=connected):
        yield broker


@asynccontextmanager
async def running(broker: Broker, *, connected: bool = True) -> AsyncIterator[None]:
    task = asyncio.create_task(broker.run())
    try:
        if connected:
            await within(broker.until_connected())
            assert await broker.flush(PATIENCE)
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled(), task


async def within(what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await what


async def retained(mosquitto: Mosquitto, stranger: Connect, pattern: str) -> dict[str, bytes]:
    """All that is retained below a pattern, by a round trip that follows it in the broker's order."""
    found: dict[str, bytes] = {}
    async with stranger(mosquitto) as client:
        await client.subscribe("sentinel")
        await client.subscribe(pattern)
        await client.send("sentinel", {})
        while (message := await client.next()).topic.value != "sentinel":
            found[message.topic.value] = bytes(message.payload)
    return found


# --- commands


async def test_command_reaches_the_handler_and_its_answer_comes_back(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe("anywhere/at/all")
        await client.send(topics.command(HOST), PING, ResponseTopic="anywhere/at/all", CorrelationData=b"\x00\xff7")
        message = await client.next()
    assert message.properties is not None
    assert message.properties.CorrelationData == b"\x00\xff7"  # type: ignore[attr-defined]
    reply = Reply.model_validate_json(bytes(message.payload))
    assert (reply.kind, reply.host, reply.command) == (ReplyKind.FINISHED, HOST, "c-1")


@pytest.mark.parametrize(
    ("payload", "code", "said", "command"),
    [
        (b"", ErrorCode.BAD_COMMAND, "this is not JSON", None),
        (b"\xff\xfe\x00", ErrorCode.BAD_COMMAND, "this is not JSON", None),
        (b"[" * 5000, ErrorCode.BAD_COMMAND, "this is not JSON", None),
        (b'"migrate"', ErrorCode.BAD_COMMAND, "a command is a JSON object, not a string", None),
        (b" " * 100_000, ErrorCode.BAD_COMMAND, "a command of 100000 bytes is too large", None),
        ({"id": "c-1"}, ErrorCode.BAD_COMMAND, "kind is missing", "c-1"),
        ({"id": "c-1", "kind": "teleport"}, ErrorCode.BAD_COMMAND, 'kind "teleport" is not known; known are', "c-1"),
        ({**PING, "colour": 1}, ErrorCode.BAD_COMMAND, "colour is not a field of this message", "c-1"),
        ({**PING, "version": 2}, ErrorCode.UNSUPPORTED_VERSION, "version 2 of the contract is not spoken here", "c-1"),
        ({**PING, "id": "../etc"}, ErrorCode.BAD_COMMAND, "id is", None),
        (
            {"id": "c-1", "kind": "migrate", "container": "web", "to": "b", "max_blackout_ms": "5"},
            ErrorCode.BAD_COMMAND,
            'max_blackout_ms is "5": input should be a valid integer',
            "c-1",
        ),
        (
            {"id": "c-1", "kind": "migrate", "container": "web"},
            ErrorCode.BAD_COMMAND,
            "to is missing",
            "c-1",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes | dict) else str(value)[:30],
)
async def test_command_that_cannot_be_read_is_answered_with_what_is_wrong(
    mosquitto: Mosquitto, stranger: Connect, payload: object, code: ErrorCode, said: str, command: str | None
) -> None:
    asked: list[Command] = []

    async def never(command: Command, answer: Answer) -> None:
        asked.append(command)

    async with agent(mosquitto.settings, never), stranger(mosquitto) as client:
        await client.subscribe("replies")
        await client.send(topics.command(HOST), payload, ResponseTopic="replies", CorrelationData=b"x")
        reply = Reply.model_validate(await client.next_json())
    assert reply.kind is ReplyKind.FAILED
    assert reply.command == command
    assert reply.error is not None
    assert reply.error.code is code
    assert said in reply.error.message
    assert reply.error.hint
    assert asked == []


async def test_every_fault_of_a_command_is_listed(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe("replies")
        command = {"id": "c-1", "kind": "migrate", "to": "Node B", "speed": 3}
        await client.send(topics.command(HOST), command, ResponseTopic="replies")
        error = Reply.model_validate(await client.next_json()).error
    assert error is not None
    assert error.message.startswith("3 faults: ")
    assert [reason.message.split(" ")[0] for reason in error.reasons] == ["container", "to", "speed"]


async def test_unreadable_command_without_response_topic_becomes_an_event(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe(topics.events(HOST))
        await client.send(topics.command(HOST), b"garbage")
        seen = Event.model_validate(await client.next_json())
    assert seen.kind == "command-rejected"
    assert seen.detail["code"] == "bad-command"


@pytest.mark.parametrize(
    "topic", [topics.host_status(HOST), topics.command("node-b"), "$SYS/broker", topics.ROOT + "/x"]
)
async def test_response_topic_in_an_agents_own_tree_is_not_written_to(
    mosquitto: Mosquitto, stranger: Connect, topic: str
) -> None:
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe(topics.ROOT + "/#")
        await client.send(topics.command(HOST), b"garbage", ResponseTopic=topic)
        assert await client.next_json_or_bytes() == b"garbage"
        seen = Event.model_validate(await client.next_json())
    assert seen.kind == "command-rejected"


async def test_expired_command_is_answered_and_not_done(mosquitto: Mosquitto, stranger: Connect) -> None:
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe("replies")
        past = (utc_now() - timedelta(seconds=1)).isoformat()
        await client.send(topics.command(HOST), {**PING, "expires_at": past}, ResponseTopic="replies")
        reply = Reply.model_validate(await client.next_json())
    assert reply.error is not None
    assert (reply.kind, reply.error.code, reply.command) == (ReplyKind.FAILED, ErrorCode.EXPIRED, "c-1")


async def test_duplicate_delivery_is_passed_through(mosquitto: Mosquitto, stranger: Connect) -> None:
    """Telling that both are one command is the dispatcher's; both are answered."""
    async with agent(mosquitto.settings), stranger(mosquitto) as client:
        await client.subscribe("replies")
        for _ in range(2):
            await client.send(topics.command(HOST), PING, ResponseTopic="replies")
        assert [(await client.next_json())["command"] for _ in range(2)] == ["c-1", "c-1"]


async def test_retained_command_is_not_done_again_at_each_connection(mosquitto: Mosquitto, stranger: Connect) -> None:
    asked: list[str] = []

    async def count(command: Command, answer: Answer) -> None:
        asked.append(command.id)

    async with stranger(mosquitto) as client:
        await client.subscribe("replies")
        await client.send(topics.command(HOST), PING, retain=True, ResponseTopic="replies")
        async with agent(mosquitto.settings, count):
            reply = Reply.model_validate(await client.next_json())
    assert reply.error is not None
    assert "retained" in reply.error.message
    assert asked == []


async def test_slow_command_does_not_hold_up_the_next(mosquitto: Mosquitto, stranger: Connect) -> None:
    go = asyncio.Event()

    async def slow_first(command: Command, answer: Answer) -> None:
        if command.id == "slow":
            await go.wait()
        await pong(command, answer)

    async with agent(mosquitto.settings, slow_first), stranger(mosquitto) as client:
        await client.subscribe("replies")
        for name in ("slow", "quick"):
            await client.send(topics.command(HOST), {**PING, "id": name}, ResponseTopic="replies")
        assert (await client.next_json())["command"] == "quick"
        go.set()
        assert (await client.next_json())["command"] == "slow"


async def test_bug_in_the_handler_is_answered_and_the_next_command_is_done(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    async def buggy(command: Command, answer: Answer) -> None:
        if command.id == "bug":
            raise ZeroDivisionError
        if command.id == "refused":
            raise Refused(ErrorCode.BUSY, "busy")
        await pong(command, answer)

    async with agent(mosquitto.settings, buggy), stranger(mosquitto) as client:
        await client.subscribe("replies")
        for name in ("bug", "refused", "fine"):
            await client.send(topics.command(HOST), {**PING, "id": name}, ResponseTopic="replies")
            reply = await client.next_json()
            assert (reply["error"] or {}).get("code") == {"bug": "internal", "refused": "busy"}.get(name)


async def test_commands_sent_while_the_agent_is_away_arrive_unless_they_have_expired(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def note(command: Command, answer: Answer) -> None:
        asked.put_nowait(command.id)

    async with agent(mosquitto.settings, note):
        pass
    async with stranger(mosquitto) as client:
        await client.send(topics.command(HOST), {**PING, "id": "short"}, MessageExpiryInterval=1)
        await client.send(topics.command(HOST), {**PING, "id": "long"}, MessageExpiryInterval=60)
        await asyncio.sleep(2.1)  # the broker's own clock: nothing says that a message has expired
    async with agent(mosquitto.settings, note):
        assert await within(asked.get()) == "long"
        assert asked.empty()


async def test_command_that_is_being_done_survives_a_restart_of_the_broker_and_its_reply_arrives(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(command: Command, answer: Answer) -> None:
        begun.set()
        await go.wait()
        await pong(command, answer)

    async with agent(mosquitto.settings, slow) as broker:
        async with stranger(mosquitto) as client:
            await client.send(topics.command(HOST), PING, ResponseTopic="replies", CorrelationData=b"x")
            await within(begun.wait())
        mosquitto.stop()
        await until(lambda: not broker.connected)
        go.set()
        mosquitto.start()
        async with stranger(mosquitto) as client:
            await client.subscribe("replies")
            await within(broker.until_connected())
            assert (await client.next_json())["command"] == "c-1"


# --- what is retained


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


# --- events


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


# --- the connection


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


# --- the decision


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


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)
