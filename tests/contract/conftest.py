"""A real mosquitto on a free port of 127.0.0.1, ended by its process id, and whoever speaks there in a test."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.base import config
from agent.cli.controller import Controller
from tests.contract.stories import StoryHost, container

PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
PATIENCE = 10.0


# Each worker has its own, below those that the kernel gives to whoever asks: another would have it before the broker.
_PORTS = iter(range(20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 32_000))


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Mosquitto:
    """A broker that can be stopped and started again on its port, with its memory or without."""

    def __init__(self, folder: Path, extra: str = "allow_anonymous true\n") -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # started as root, mosquitto changes to its own user
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n{extra}"
        )

    @property
    def settings(self) -> config.Broker:
        return config.Broker(host="127.0.0.1", port=self.port, tls=False, ca=None)

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-c", str(self._folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "mosquitto does not listen"
            time.sleep(0.01)

    def stop(self, *, forget: bool = False) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None
        if forget:
            (self._folder / "mosquitto.db").unlink(missing_ok=True)


@pytest.fixture
def start_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Mosquitto]]:
    if not Path(PROGRAM).exists():
        pytest.skip("mosquitto is not installed")
    started: list[Mosquitto] = []

    def start(extra: str = "allow_anonymous true\n") -> Mosquitto:
        mosquitto = Mosquitto(tmp_path_factory.mktemp("mosquitto"), extra)
        started.append(mosquitto)
        mosquitto.start()
        return mosquitto

    yield start
    for mosquitto in started:
        mosquitto.stop()


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell that starts the tests in the background has them ignore SIGINT, and every program that they start too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mosquitto(start_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    return start_mosquitto()


class Stranger:
    """A client written by somebody else: what comes over the wire as it is, nothing of ours in between."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def subscribe(self, topic: str) -> None:
        await self._client.subscribe(topic, qos=1)

    async def send(self, topic: str, payload: object, *, retain: bool = False, **properties: Any) -> None:
        said = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            setattr(said, name, value)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self._client.publish(topic, data, qos=1, retain=retain, properties=said)

    async def next(self) -> aiomqtt.Message:
        async with asyncio.timeout(PATIENCE):
            return await anext(aiter(self._client.messages))

    async def next_json(self) -> Any:
        message = await self.next()
        return json.loads(bytes(message.payload)) if message.payload else None

    async def next_json_or_bytes(self) -> Any:
        payload = bytes((await self.next()).payload)
        try:
            return json.loads(payload)
        except ValueError:
            return payload

    async def until(self, true: Callable[[Any], bool]) -> Any:
        while True:
            content = await self.next_json()
            if true(content):
                return content


@pytest.fixture
def stranger() -> Callable[..., contextlib.AbstractAsyncContextManager[Stranger]]:
    @asynccontextmanager
    async def connect(mosquitto: Mosquitto, **options: Any) -> AsyncIterator[Stranger]:
        async with aiomqtt.Client(
            "127.0.0.1", mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5, **options
        ) as client:
            yield Stranger(client)

    return connect


@pytest.fixture
def node_a(mosquitto: Mosquitto) -> StoryHost:
    return StoryHost("node-a", mosquitto.settings, [container("node-a", "web", 1), container("node-a", "db", 2)])


@pytest.fixture
async def hosts(mosquitto: Mosquitto, node_a: StoryHost) -> AsyncIterator[None]:
    node_b = StoryHost("node-b", mosquitto.settings, [container("node-b", "cache", 3)])
    async with node_a.running(), node_b.running():
        yield


@pytest.fixture
async def controller(mosquitto: Mosquitto, hosts: None) -> AsyncIterator[Controller]:
    async with Controller(mosquitto.settings) as controller:
        yield controller
