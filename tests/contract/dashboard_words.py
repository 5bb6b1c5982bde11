"""What hosts say in tests of the dashboard, by hand, and the fixtures of these. No tests."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.contract.conftest import Mosquitto, Stranger, free_port
from tests.contract.dashboard_support import browser as chromium

Connect = Callable[..., AbstractAsyncContextManager[Stranger]]
GIB = 1 << 30
MOVE = "m-0123456789abcdef"
NOW = "2026-01-01T12:00:00+00:00"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all of a file's tests, each of which opens it with nothing in it: starting it costs two seconds."""
    async with chromium() as found:
        yield found


@pytest.fixture
def web(start_mosquitto: Callable[..., Mosquitto]) -> tuple[Mosquitto, str]:
    """A broker that browsers reach too, and where."""
    port = free_port()
    extra = f"allow_anonymous true\nlistener {port} 127.0.0.1\nprotocol websockets\n"
    return start_mosquitto(extra), f"ws://127.0.0.1:{port}"


def host(name: str, **more: Any) -> dict[str, Any]:
    return {"host": name, "online": True, "memory_bytes": 8 * GIB, "memory_free_bytes": 5 * GIB, "cpus": 4, **more}


def container_id(number: int) -> str:
    return f"{number:064x}"


def container(of: str, number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"host": of, "id": container_id(number), "name": name, "image": "web:1", "state": "running", **more}


async def say_host(client: Stranger, name: str, **more: Any) -> None:
    await client.send(f"transship/v1/hosts/{name}/status", host(name, **more), retain=True)


async def say_container(client: Stranger, of: str, number: int, name: str, **more: Any) -> None:
    topic = f"transship/v1/hosts/{of}/containers/{container_id(number)}"
    await client.send(topic, container(of, number, name, **more), retain=True)


def move(phase: str, sequence: int, name: str = "web", **more: Any) -> dict[str, Any]:
    return {
        "id": MOVE,
        "container": name,
        "container_id": container_id(1),
        "source": "node-a",
        "target": "node-b",
        "phase": phase,
        "sequence": sequence,
        "started_at": NOW,
        "at": NOW,
        **more,
    }


async def say_move(client: Stranger, *said: Any, **more: Any) -> None:
    await client.send(f"transship/v1/migrations/{MOVE}/node-a/status", move(*said, **more), retain=True)


async def asked(client: Stranger) -> tuple[dict[str, Any], Any]:
    """The next command that is more than the page's question whether it may; and where to answer."""
    while True:
        command = await client.next()
        said = json.loads(command.payload)
        if said["kind"] != "ping":
            return said, command.properties


async def answer(client: Stranger, to: Any, **reply: Any) -> None:
    await client.send(to.ResponseTopic, reply, CorrelationData=to.CorrelationData)


async def signed_in(page: Page) -> None:
    await page.get_by_label("User").fill("someone")
    await page.get_by_role("button", name="Connect").click()
    await expect(page.locator("#state")).to_have_text("connected as someone")
