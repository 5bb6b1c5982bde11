"""The archive's way through the command line's pipes, when the other end takes its time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from agent.base.tasks import readable, writable
from agent.cli import checkpoint
from agent.cli.checkpoint import _chunks


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


async def test_chunks_come_as_they_are_written_until_the_end(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe

    async def all_of(chunks: AsyncIterator[bytes]) -> bytes:
        return b"".join([chunk async for chunk in chunks])

    reading = asyncio.create_task(all_of(_chunks(ours)))
    for word in (b"one ", b"two"):
        os.write(theirs, word)
        await asyncio.sleep(0)
    end = os.dup(theirs)
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), theirs)
    os.close(end)
    async with asyncio.timeout(10):
        assert await reading == b"one two"


async def test_while_nobody_takes_a_chunk_nothing_listens_for_more(pipe: tuple[int, int]) -> None:
    """The event loop tells it again and again, for as long as anybody listens: that would take a processor."""
    ours, theirs = pipe
    os.write(theirs, b"one")
    async with aclosing(_chunks(ours)) as chunks, asyncio.timeout(10):
        assert await anext(chunks) == b"one"
        os.write(theirs, b"two")
        assert not asyncio.get_running_loop().remove_reader(ours)
        assert await anext(chunks) == b"two"


async def test_waiting_ends_when_there_is_room_and_when_there_is_something(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    full = 0
    with pytest.raises(BlockingIOError):
        while True:
            full += os.write(theirs, bytes(4096))
    async with asyncio.timeout(10):
        room = asyncio.create_task(writable(theirs))
        await asyncio.sleep(0)
        assert not room.done()
        await readable(ours)
        while full:
            full -= len(os.read(ours, 65536))
        await room


async def test_who_is_ended_politely_leaves_no_pipe_also_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell's `&` has Ctrl-C ignored: that must not be how it ends."""
    monkeypatch.setattr(checkpoint, "PIPES", tmp_path)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    there = asyncio.Event()

    async def story() -> None:
        with checkpoint._pipe(None):
            there.set()
            await asyncio.Event().wait()

    try:
        typed = asyncio.create_task(story())
        async with asyncio.timeout(10):
            await there.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(asyncio.CancelledError):
                await typed
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
