"""Trees as byte streams: back-pressure, errors from either side, and no thread left after a cancel."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.base.errors import CorruptPart, StepFailed
from agent.prework import stream as stream_module
from agent.prework.pipe import Pipe, PipeClosedError, Worker
from agent.prework.stream import Checked, packed, unpacked
from agent.prework.tree import Source
from tests.unit.test_prework_support import assert_same, let_the_clock_tick
from tests.unit.test_prework_support import packed as packed_at_once

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "dir").mkdir(parents=True)
    for number in range(40):
        (root / f"dir/f{number}").write_bytes(os.urandom(MIB // 2))
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


async def chunked(data: bytes, step: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]
        yield b""


async def test_both_ends_come_to_the_same(source: Path, target: Path) -> None:
    async with packed(Source(str(source))) as stream:
        summary, there = await unpacked(stream, str(target))
        assert there == stream.checked
        assert stream.packed is not None
        assert there.bytes == stream.packed.stream_bytes == summary.stream_bytes
    assert_same(source, target)


async def test_delta_goes_the_same_way(source: Path, target: Path) -> None:
    let_the_clock_tick()
    async with packed(Source(str(source))) as stream:
        await unpacked(stream, str(target))
    assert stream.packed is not None
    (source / "dir/f3").unlink()
    (source / "new").write_text("x")
    async with packed(Source(str(source)), stream.packed.index, live=False) as delta:
        summary, _ = await unpacked(delta, str(target))
    assert summary.removed == 1
    assert summary.data_bytes == 1
    assert_same(source, target)


async def test_sum_is_that_of_the_bytes(source: Path, target: Path) -> None:
    data, _ = packed_at_once(Source(str(source)))
    _, checked = await unpacked(chunked(data), str(target))
    assert checked == Checked(hashlib.sha256(data).hexdigest(), len(data))


async def test_packing_does_not_run_ahead_of_the_receiver(source: Path) -> None:
    async with packed(Source(str(source))) as stream:
        await anext(stream)
        await asyncio.sleep(0.2)  # for what must not happen there is nothing to wait for
        ahead = stream._check.sum().bytes
        assert ahead < 10 * MIB


async def test_unpacking_holds_the_sender_back(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = packed_at_once(Source(str(source)))
    go = threading.Event()
    real = stream_module.apply
    monkeypatch.setattr(stream_module, "apply", lambda *a, **k: (go.wait(), real(*a, **k))[1])
    given = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal given
        async for chunk in chunked(data, MIB):
            given += len(chunk)
            yield chunk

    task = asyncio.create_task(unpacked(counted(), str(target)))
    await asyncio.sleep(0.2)
    assert given < 8 * MIB
    go.set()
    await task
    assert given == len(data)


async def test_error_of_the_source_comes_out_of_the_stream(tmp_path: Path) -> None:
    async def read_it() -> None:
        async with packed(Source(str(tmp_path / "nothing"))) as stream:
            async for _ in stream:
                pass

    with pytest.raises(StepFailed):
        await read_it()


async def test_stream_left_early_ends_the_thread(source: Path) -> None:
    async with packed(Source(str(source))) as stream:
        async for _ in stream:
            break


async def test_stream_that_nobody_read_ends_the_thread(source: Path) -> None:
    async with packed(Source(str(source))):
        pass


async def test_error_of_the_receiver_comes_out_unchanged(source: Path) -> None:
    class ConnectionLostError(Exception):
        pass

    async def lose_it() -> None:
        async with packed(Source(str(source))) as stream:
            async for _ in stream:
                raise ConnectionLostError

    with pytest.raises(ConnectionLostError):
        await lose_it()


async def test_cancel_while_packing_ends_the_thread(source: Path) -> None:
    started = asyncio.Event()

    async def send() -> None:
        async with packed(Source(str(source))) as stream:
            async for _ in stream:
                started.set()
                await asyncio.sleep(3600)

    task = asyncio.create_task(send())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_cancel_while_the_stream_is_silent_ends_the_thread(source: Path, target: Path) -> None:
    data, _ = packed_at_once(Source(str(source)))
    silent = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield data[:MIB]
        silent.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(unpacked(stalled(), str(target)))
    await silent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_second_cancel_waits_for_the_thread_too(source: Path) -> None:
    go = threading.Event()
    started = asyncio.Event()

    async def wait() -> None:
        worker = Worker("slow", go.wait)
        try:
            started.set()
            await asyncio.sleep(3600)
        finally:
            await worker.ended()

    task = asyncio.create_task(wait())
    await started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_cancel_at_any_moment_leaves_nothing(source: Path, target: Path) -> None:
    for number in range(25):

        async def move(where: Path = target / str(number)) -> None:
            where.mkdir()
            async with packed(Source(str(source))) as stream:
                await unpacked(stream, str(where))

        task = asyncio.create_task(move())
        await asyncio.sleep(number * 0.002)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.done()


async def test_corrupt_stream_ends_at_once_though_the_sender_is_silent(target: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"no tar at all" * 100
        await asyncio.sleep(3600)

    with pytest.raises(CorruptPart):
        await asyncio.wait_for(unpacked(stalled(), str(target)), 5)


async def test_corrupt_stream_ends_at_once_though_the_sender_goes_on(target: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"no tar at all" * 1000
            await asyncio.sleep(0)

    with pytest.raises(CorruptPart):
        await asyncio.wait_for(unpacked(endless(), str(target)), 5)


async def test_lost_connection_comes_out_unchanged(source: Path, target: Path) -> None:
    data, _ = packed_at_once(Source(str(source)))

    async def lost() -> AsyncIterator[bytes]:
        yield data[:MIB]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await unpacked(lost(), str(target))


async def test_stream_that_just_ends_is_no_success(source: Path, target: Path) -> None:
    data, _ = packed_at_once(Source(str(source)))
    with pytest.raises(CorruptPart):
        await unpacked(chunked(data[:-1024]), str(target))


async def test_closed_pipe_lets_nobody_wait() -> None:
    pipe = Pipe()
    worker = Worker("reader", pipe.get_blocking)
    pipe.close()
    with pytest.raises(PipeClosedError):
        await worker.result()
    with pytest.raises(PipeClosedError):
        await pipe.put(b"x")
    assert await pipe.get() is None
    await worker.ended()
