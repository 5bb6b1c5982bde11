"""Commands at a real broker: none that an agent is asked goes unanswered, whatever happens to it meanwhile."""

import asyncio
from datetime import timedelta

import pytest

from agent.base.errors import Refused
from agent.doors.mqtt import Answer, Broker
from protocol import topics
from protocol.base import utc_now
from protocol.commands import Command, Reply, ReplyKind
from protocol.errors import ErrorCode
from protocol.status import Event
from tests.contract.broker_support import HOST, PING, Connect, agent, pong, running, until, within
from tests.contract.conftest import Mosquitto


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


async def test_replay_of_a_command_that_was_done_is_answered_after_its_expiry(
    mosquitto: Mosquitto, stranger: Connect
) -> None:
    """What has expired is not begun; but what was begun in time is in the record, and answered from it."""
    known = {"c-1"}

    async def recorded(command: Command, answer: Answer) -> bool:
        if command.id in known:
            await pong(command, answer)
        return command.id in known

    async def never(command: Command, answer: Answer) -> None:
        raise AssertionError(command)

    broker = Broker(mosquitto.settings, HOST, never, recorded)
    async with running(broker), stranger(mosquitto) as client:
        await client.subscribe("replies")
        past = (utc_now() - timedelta(seconds=1)).isoformat()
        for identity in ("c-1", "c-2"):
            command = {**PING, "id": identity, "expires_at": past}
            await client.send(topics.command(HOST), command, ResponseTopic="replies")
        replies = [Reply.model_validate(await client.next_json()) for _ in range(2)]
    assert [reply.kind for reply in replies] == [ReplyKind.FINISHED, ReplyKind.FAILED]
    assert replies[1].error is not None
    assert replies[1].error.code is ErrorCode.EXPIRED


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
