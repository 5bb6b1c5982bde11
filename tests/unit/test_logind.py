"""The connection to logind: none is left open when a try fails; and how much time a shutdown is planned for."""

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import pytest

from agent.base.config import Settings
from agent.daemon import Agent
from agent.doors import logind, systemd
from agent.doors.logind import Logind


class Bus:
    """One connection on paper; `fails_at` says where it does."""

    made: "list[Bus]"
    fails_at = ""

    def __init__(self, **_: object) -> None:
        self.open = True
        self.heard: list[object] = []
        Bus.made.append(self)

    async def connect(self) -> "Bus":
        self._fail("connect")
        return self

    def add_message_handler(self, handler: object) -> None:
        self.heard.append(handler)

    async def call(self, message: Any) -> Any:
        self._fail(message.member)

    async def wait_for_disconnect(self) -> None:
        raise AssertionError("it never came so far")

    def disconnect(self) -> None:
        self.open = False

    def _fail(self, where: str) -> None:
        if where == Bus.fails_at:
            raise EOFError(where)


@pytest.mark.parametrize("where", ["connect", "AddMatch"])
async def test_a_try_that_fails_leaves_no_connection(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aio = pytest.importorskip("dbus_fast.aio")
    Bus.made, Bus.fails_at = [], where
    monkeypatch.setattr(aio, "MessageBus", Bus)
    monkeypatch.setattr(logind, "SYSTEM_BUS", tmp_path)
    monkeypatch.setattr(logind, "FIRST_PAUSE", 0.001)
    watching = asyncio.create_task(Logind(lambda _: None, lambda: None).run())
    try:
        async with asyncio.timeout(5):
            while len(Bus.made) < 3:
                await asyncio.sleep(0)
        assert [bus.open for bus in Bus.made[:-1]] == [False, False]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert not Bus.made[-1].open


def test_the_end_of_a_rescue_lets_go_the_lock_of_its_own_shutdown_alone() -> None:
    """The shutdown is called off, and the lock taken anew, before the rescue has ended."""
    first, second = os.pipe()
    watch = Logind(lambda _: None, lambda: None)
    watch.lock = io.FileIO(first)
    of_the_first = watch.lock
    watch.release()
    watch.lock = io.FileIO(second, "w")
    of_the_first.close()
    assert not watch.lock.closed
    watch.release()
    assert watch.lock is None


@pytest.mark.parametrize(("by_systemd", "seconds"), [(True, 3.0 + 300.0), (False, 3.0)])
async def test_the_plan_has_the_time_that_systemd_gives_after_logind(
    monkeypatch: pytest.MonkeyPatch, *, by_systemd: bool, seconds: float
) -> None:
    """Where logind hardly waits nobody is stopped for want of time."""
    given: list[float] = []

    class Down:
        def begin(self, seconds: float, why: str) -> "asyncio.Task[None]":
            given.append(seconds)
            return asyncio.create_task(asyncio.sleep(0))

    monkeypatch.setattr(systemd, "runs_us", lambda: by_systemd)
    agent: Any = Agent.__new__(Agent)
    agent._settings, agent.host_down, agent._noted = Settings(host="node-a"), Down(), set()
    agent.logind = Logind(lambda _: None, lambda: None)
    agent._goes_down(5.0)
    await asyncio.gather(*agent._noted)
    assert given == [seconds]
