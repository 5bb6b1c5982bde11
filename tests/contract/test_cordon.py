"""A real agent at a real broker, on a host whose dockerd is away: its cordon, and what an evacuation comes to there."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.base import pki
from agent.base.config import Settings
from agent.base.errors import AgentError
from agent.cli.controller import Controller
from agent.daemon import Agent
from protocol.commands import CancelEvacuation, Cordon, Evacuate
from protocol.errors import ErrorCode
from protocol.status import HostStatus
from tests.contract.conftest import Mosquitto

PATIENCE = 20.0


@pytest.fixture
def settings(mosquitto: Mosquitto, tmp_path: Path) -> Settings:
    ca, ca_key = pki.make_ca("test", 1)
    certificate, key = pki.issue(ca, ca_key, "node-a", ["node-a"], ["127.0.0.1"], 1)
    files = {"ca": ca, "certificate": certificate, "key": key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Settings.model_validate(
        {
            "host": "node-a",
            "docker": f"unix://{tmp_path}/docker.sock",
            "broker": mosquitto.settings,
            "state_dir": tmp_path,
            "checkpoints": {"folder": tmp_path / "checkpoints"},
            "peer": {"listen": "127.0.0.1", "port": port, **{name: tmp_path / name for name in files}},
        }
    )


@asynccontextmanager
async def running(settings: Settings, controller: Controller) -> AsyncIterator[None]:
    stopped = asyncio.Event()
    task = asyncio.create_task(Agent(settings).run(stopped))
    try:
        async with asyncio.timeout(PATIENCE):
            while not any(one.online for one in await controller.hosts()):
                assert not task.done(), task.result()
                await asyncio.sleep(0.05)
        yield
    finally:
        stopped.set()
        await task


async def said(controller: Controller) -> HostStatus:
    [host] = await controller.hosts()
    return host


async def test_a_cordon_is_told_and_outlives_the_agent(mosquitto: Mosquitto, settings: Settings) -> None:
    async with Controller(mosquitto.settings) as controller:
        async with running(settings, controller):
            assert not (await said(controller)).cordoned
            await controller.ask("node-a", Cordon(id="c-1"))
            assert (await said(controller)).cordoned
        assert not (await said(controller)).online
        async with running(settings, controller):
            assert (await said(controller)).cordoned
            await controller.ask("node-a", Cordon(id="c-2", cordoned=False))
            assert not (await said(controller)).cordoned


async def test_without_dockerd_nothing_is_begun_and_nothing_cordoned(mosquitto: Mosquitto, settings: Settings) -> None:
    async with Controller(mosquitto.settings) as controller, running(settings, controller):
        command = Evacuate(id="c-1")
        for _ in range(2):  # the second time from the record
            with pytest.raises(AgentError) as refused:
                await controller.ask("node-a", command)
            assert refused.value.code is ErrorCode.DOCKER_UNAVAILABLE
        assert not (await said(controller)).cordoned
        assert await controller.evacuations() == []
        with pytest.raises(AgentError) as refused:
            await controller.ask("node-a", CancelEvacuation(id="c-2", evacuation="e-0123456789abcdef"))
        assert refused.value.code is ErrorCode.NO_SUCH_EVACUATION
