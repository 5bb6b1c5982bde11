"""A page channel's ends: what goes in at one comes out at the other, whole and once, over however many links."""

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.runtime.pages import WINDOW, Broken, Stream

SECONDS = 30.0


class Side:
    """One end, with the program that would be CRIU on its other side."""

    def __init__(self) -> None:
        self.program, self._local = socket.socketpair()
        self.program.setblocking(False)
        self._local.setblocking(False)
        self.stream = Stream(self._local)
        self._work = [asyncio.create_task(self.stream.pull()), asyncio.create_task(self.stream.deliver())]

    async def close(self) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self.program.close()
        self._local.close()

    async def read(self, count: int) -> bytes:
        loop, got = asyncio.get_running_loop(), bytearray()
        while len(got) < count:
            data = await loop.sock_recv(self.program, 1 << 16)
            assert data, "it ended early"
            got += data
        return bytes(got)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.program, data)


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[Side, Side]]:
    one, other = Side(), Side()
    try:
        async with asyncio.timeout(SECONDS):
            yield one, other
    finally:
        await one.close()
        await other.close()


async def link(one: Side, other: Side, cut_after: int | None = None) -> None:
    """Join both over a new link, which breaks when that many bytes have gone over it in one direction."""
    near, far = socket.socketpair(), socket.socketpair()
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    async def over(side: Side, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        writers.append(writer)
        await side.stream.over(reader, writer)

    async def carry(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        left = limit
        while left is None or left > 0:
            data = await loop.sock_recv(source, 1 << 15)
            if not data:
                break
            await loop.sock_sendall(target, data if left is None else data[:left])
            left = None if left is None else left - len(data)

    for end in (near[1], far[1]):
        end.setblocking(False)
    try:
        ways = [carry(near[1], far[1], cut_after), carry(far[1], near[1], None)]
        tasks = [asyncio.create_task(each) for each in (*ways, over(one, near[0]), over(other, far[0]))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in tasks[:2]:
            way.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        near[1].close()
        far[1].close()
        await asyncio.gather(*tasks[2:], return_exceptions=True)  # each takes what has come, and finds the end
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("seed", range(5))
async def test_bytes_come_once_and_in_order_over_links_that_break(seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(3_000_000)
    async with ends() as (one, other):
        reading = asyncio.create_task(other.read(len(data)))
        writing = asyncio.create_task(one.write(data))
        breaks = 0
        while not reading.done():
            linking = asyncio.create_task(link(one, other, chance.randrange(1, 400_000)))
            await asyncio.wait({linking, reading}, return_when=asyncio.FIRST_COMPLETED)
            breaks += linking.done()
            linking.cancel()
            await asyncio.gather(linking, return_exceptions=True)
        await writing
        assert hashlib.sha256(await reading).digest() == hashlib.sha256(data).digest()
        assert breaks > 3
        assert other.stream.received == len(data)


async def test_questions_and_answers_go_both_ways() -> None:
    async with ends() as (one, other):
        linking = asyncio.create_task(link(one, other))
        for number in range(50):
            await one.write(b"question %03d" % number)
            assert await other.read(12) == b"question %03d" % number
            await other.write(b"answer %03d" % number)
            assert await one.read(10) == b"answer %03d" % number
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)


async def test_no_more_than_a_window_is_kept_while_there_is_no_link() -> None:
    async with ends() as (one, _):
        writing = asyncio.create_task(one.write(bytes(3 * WINDOW)))
        while one.stream.taken < WINDOW:
            await asyncio.sleep(0)
        assert not writing.done()
        assert one.stream.taken - one.stream.acked < 2 * WINDOW
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_the_end_of_one_side_is_known_at_the_other_and_kept_from_its_program() -> None:
    """CRIU's daemon would end of it, and the tasks would take missing pages for zeros."""
    async with ends() as (one, other):
        linking = asyncio.create_task(link(one, other))
        await one.write(b"the last")
        one.program.shutdown(socket.SHUT_WR)
        assert await other.read(8) == b"the last"
        await other.stream.hung_up.wait()
        with pytest.raises(BlockingIOError):
            other.program.recv(1)
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)


@pytest.mark.parametrize(
    "said",
    [
        b"\x01" + (1).to_bytes(8, "big") + bytes(4),  # more than was ever sent
        b"\x02" + bytes(12),  # no hello
    ],
)
async def test_an_end_that_makes_no_sense_is_not_listened_to(said: bytes) -> None:
    async with ends() as (one, _):
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs.sendall(said)
        with pytest.raises(Broken):
            await one.stream.over(reader, writer)
        writer.close()
        theirs.close()
