"""What a host says of its own load: measured by /proc, and said when it has become another one."""

import asyncio
import contextlib
from typing import Any, cast

import pytest

from agent import announcer
from agent.announcer import Announcer
from agent.base.config import Settings
from agent.checkpoint import proc
from agent.doors.mqtt import Broker
from protocol.status import HostStatus

GIB = 1 << 30


class Heard:
    """A broker that keeps what is retained."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[HostStatus] = asyncio.Queue()

    def publish_retained(self, topic: str, message: HostStatus, **_: Any) -> None:
        assert topic.endswith("/status")
        self.said.put_nowait(message)


def test_the_processors_were_busy_for_a_part_of_all_ticks() -> None:
    busy, ticks = proc.cpu_times()
    assert 0 < busy < ticks


async def test_a_load_is_said_when_it_has_changed_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [(100, 1000), (103, 1100), (106, 1200), (156, 1300), (159, 1400), (162, 1500)]
    free = [6 * GIB]
    monkeypatch.setattr(announcer, "LOAD_SECONDS", 0.001)
    monkeypatch.setattr(proc, "cpu_times", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(proc, "memory_total", lambda: 8 * GIB)
    monkeypatch.setattr(proc, "memory_available", lambda: free[0])
    broker = Heard()
    voice = Announcer(Settings(host="node-a"), cast("Broker", broker))
    await voice.engine_changed(None)
    assert (await broker.said.get()).cpu_busy is None, "it is not guessed before it was measured"
    watching = asyncio.create_task(voice.watch_load())
    async with asyncio.timeout(10):
        busier, quieter = await broker.said.get(), await broker.said.get()
        free[0] = 4 * GIB
        fuller = await broker.said.get()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert (busier.cpu_busy, busier.memory_free_bytes) == (pytest.approx(0.5), 6 * GIB)
    assert quieter.cpu_busy == pytest.approx(0.03)
    assert fuller.memory_free_bytes == 4 * GIB
    assert broker.said.empty(), "a few per cent are not worth a message"
