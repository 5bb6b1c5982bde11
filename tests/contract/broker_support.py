"""An agent at a broker for the length of a test: what it says there, and waits that come to an end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from agent.base.config import Broker as Settings
from agent.doors import mqtt
from agent.doors.mqtt import Answer, Broker
from protocol.base import utc_now
from protocol.commands import Command, Reply, ReplyKind
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


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)
