"""The ends of a page channel as they are: two processes, with commands that speak to each other through them."""

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from agent.base.errors import DumpFailed
from agent.base.shell import Shell
from agent.base.tasks import beside
from agent.checkpoint import proc
from agent.doors.pages import PageChannel
from agent.runtime.pages import PAGES_FD, READY_FD
from agent.strategy import postcopy
from agent.strategy.postcopy import PostCopy

SECONDS = 30.0
ASKS = f"""
import os, socket, sys
link = socket.socket(fileno={PAGES_FD})
os.write({READY_FD}, bytes(1))
for number in range(100):
    link.sendall(b"%08d" % number)
    got = b""
    while len(got) < 65536:
        got += link.recv(65536 - len(got))
    assert got == (b"%08d" % number) * 8192
sys.exit(int(sys.argv[1]))
"""
ANSWERS = f"""
import os, socket
link = socket.socket(fileno={PAGES_FD})
os.write({READY_FD}, bytes(1))
while question := link.recv(8):
    link.sendall(question * 8192)
"""


class Wire:
    """One end of a link between two agents; the WebSocket of one is read by the other."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other = self

    async def send_bytes(self, data: bytes) -> None:
        self.other._inbox.put_nowait(data)

    async def close(self) -> bool:
        self.other._inbox.put_nowait(None)
        return True

    async def __aiter__(self) -> AsyncIterator[aiohttp.WSMessage]:
        while (data := await self._inbox.get()) is not None:
            yield aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, data, None)


@asynccontextmanager
async def linked(one: PageChannel, other: PageChannel) -> AsyncIterator[None]:
    near, far = Wire(), Wire()
    near.other, far.other = far, near
    async with beside(one.carry(near), other.carry(far)):
        yield


@asynccontextmanager
async def channel(folder: Path, program: str, *words: str) -> AsyncIterator[PageChannel]:
    made = PageChannel(Shell(), folder)
    await made.start(sys.executable, "-c", program, *words, seconds=SECONDS)
    try:
        async with asyncio.timeout(SECONDS):
            yield made
    finally:
        await PageChannel(Shell(), folder).stop(kill=True)
        made.close()


async def test_two_programs_speak_over_links_that_are_replaced(tmp_path: Path) -> None:
    async with channel(tmp_path / "a", ASKS, "0") as asks, channel(tmp_path / "b", ANSWERS) as answers:
        answers.begin()
        asks.begin()
        assert await answers.until_ready()
        assert await asks.until_ready()
        while asks.code is None:
            async with linked(asks, answers):
                await asks.until_news(0.05)
        assert asks.code == 0
        assert answers.code is None, "nobody tells it that the other has ended"
        async with linked(asks, answers):
            while not answers.hung_up:
                await answers.until_news(0.05)
        await answers.stop()
        assert answers.code == 0, "it was hung up on"
        assert not answers.exists


async def test_an_end_is_found_by_another_agent(tmp_path: Path) -> None:
    async with channel(tmp_path, ANSWERS) as first:
        first.begin()
        assert await first.until_ready()
        first.close()
        second = PageChannel(Shell(), tmp_path)
        assert second.exists
        assert await second.connect()
        assert await second.until_ready()
        await second.stop(kill=True)
        assert not second.exists


async def test_the_guard_is_written_by_the_end_itself_when_its_command_fails(tmp_path: Path) -> None:
    (tmp_path / "freezer").write_text("THAWED")
    async with channel(tmp_path / "a", ASKS, "1") as asks, channel(tmp_path / "b", ANSWERS) as answers:
        answers.begin()
        asks.begin()
        asks.guard(tmp_path / "freezer", "FROZEN")
        async with linked(asks, answers):
            while asks.code is None:
                await asks.until_news(0.05)
    assert asks.code == 1
    assert (tmp_path / "freezer").read_text() == "FROZEN"


async def test_a_command_that_is_not_there_has_ended_and_says_so(tmp_path: Path) -> None:
    made = PageChannel(Shell(), tmp_path)
    await made.start("/no/such/program", seconds=SECONDS)
    made.begin()
    assert not await made.until_ready()
    assert made.code == 127
    assert "/no/such/program can't be started" in made.said[0]
    await made.stop()


# --- what a source makes of the end of its CRIU while the target restores ---


async def test_a_page_server_that_has_given_all_is_missed_by_nobody(tmp_path: Path) -> None:
    async with channel(tmp_path, "pass") as end:
        end.begin()
        await _strategy(end).fails_to_serve("m-1")
        assert end.code == 0


async def test_one_that_fails_is(tmp_path: Path) -> None:
    async with channel(tmp_path, "import sys; print('can not read pages'); sys.exit(1)") as end:
        end.begin()
        with pytest.raises(DumpFailed, match="CRIU has ended") as failed:
            await _strategy(end).fails_to_serve("m-1")
    assert failed.value.detail == ("can not read pages",)


async def test_one_that_nobody_can_reach_any_more_is(tmp_path: Path) -> None:
    """The channel's own end was killed: no page gets out of CRIU."""
    async with channel(tmp_path, ANSWERS) as end:
        end.begin()
        assert await end.until_ready()
        failing = asyncio.create_task(_strategy(end).fails_to_serve("m-1"))
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(tmp_path / "control"))
            pid, _, _ = struct.unpack("3i", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DumpFailed):
            await failing


# --- whether they serve, right before the decision: nobody has been told of a kill yet, and no time may pass ---

FORKS = "import os, signal; child = os.fork(); child or signal.pause(); print(child, flush=True); signal.pause()"


async def test_an_end_that_was_just_killed_serves_no_more(tmp_path: Path) -> None:
    async with channel(tmp_path, ANSWERS) as end:
        end.begin()
        assert await end.until_ready()
        assert await _strategy(end).serves("m-1")
        assert end.pid is not None
        os.kill(end.pid, signal.SIGKILL)
        assert not await _strategy(end).serves("m-1")
        assert end.exists, "its file says nothing of that"


async def test_a_restarted_source_sees_that_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(_: str) -> Path:
        return tmp_path

    monkeypatch.setattr(postcopy, "_folder", folder)
    async with channel(tmp_path, ANSWERS) as end:
        end.begin()
        assert await end.until_ready()
        assert await PostCopy().serves("m-1")
        assert end.pid is not None
        os.kill(end.pid, signal.SIGKILL)
        assert not await PostCopy().serves("m-1")


async def test_a_criu_that_was_just_killed_serves_no_more_though_runc_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postcopy, "ENDED_SECONDS", 0.01)
    async with channel(tmp_path, FORKS) as end:
        end.begin()
        while not end.said:
            await end.until_news(0.01)
        criu, strategy = int(end.said[0]), _strategy(end)
        strategy._criu = (criu, proc.start_time(criu))
        assert await strategy.serves("m-1")
        os.kill(criu, signal.SIGKILL)
        assert end.code is None, "nobody has said so yet"
        assert not await strategy.serves("m-1")


async def test_a_criu_that_has_given_all_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    """What it has ended with is known only when runc has ended, too: that is waited for."""
    async with channel(tmp_path, "pass") as end:
        strategy = _strategy(end)
        strategy._criu = (os.getpid(), None)
        end.begin()
        assert await strategy.serves("m-1")
        assert end.code == 0


def _strategy(end: PageChannel) -> PostCopy:
    made = PostCopy()
    made._channel = end
    return made
