"""Parts that are compressed on their way, and whether they are."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.base import zstd
from agent.base.errors import CorruptPart
from agent.checkpoint import sample
from agent.doors.compression import FRAME, LENGTH, Compressed, compressed, decompressed, try_out
from agent.migration.compression import choose
from protocol.commands import Migrate

MIB = 1 << 20
SLOW, FAST = 5.0 * MIB, 100_000.0 * MIB


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH, "big") + data


@given(st.lists(st.binary(max_size=3000)), st.integers(min_value=1, max_value=5000))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
async def test_what_was_compressed_comes_out_again_however_it_is_cut(data: list[bytes], cut: int) -> None:
    wire = await joined(compressed(chunks(*data), Compressed()))
    cuts = [wire[at : at + cut] for at in range(0, len(wire), cut)]
    assert await joined(decompressed(chunks(*cuts))) == b"".join(data)


async def test_no_frame_holds_more_than_its_bound_and_all_is_counted() -> None:
    data, count = os.urandom(FRAME) + bytes(2 * FRAME + 5), Compressed()
    wire = [frame async for frame in compressed(chunks(data), count)]
    assert len(wire) == 4
    assert count.raw == len(data)
    assert count.compressed == sum(map(len, wire)) < FRAME + 4096
    assert [len(chunk) async for chunk in decompressed(chunks(*wire))] == [FRAME, FRAME, FRAME, 5]


@pytest.mark.parametrize(
    "wire",
    [
        b"\0\0\0\5abcde",
        framed(zstd.frame(bytes(FRAME + 1), 1)),
        framed(zstd.frame(b"", 1)),
        framed(zstd.compressor(1).flush()),
        (3 * FRAME).to_bytes(LENGTH, "big"),
        framed(zstd.frame(b"whole", 1))[:-1],
        b"\0\0",
    ],
    ids=["no zstd", "a bomb", "nothing in it", "does not say how much", "too long", "cut off", "cut off in its length"],
)
async def test_what_is_none_is_corrupt(wire: bytes) -> None:
    with pytest.raises(CorruptPart):
        await joined(decompressed(chunks(wire)))


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
async def test_any_bytes_are_refused_or_decompressed(wire: bytes) -> None:
    with contextlib.suppress(CorruptPart):
        await joined(decompressed(chunks(wire)))


@pytest.fixture(params=["noise", "text"])
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A process with 32 MiB of that, and 64 MiB that it has never touched."""
    fill = "os.urandom(32 << 20)" if request.param == "noise" else "b'transship ' * 3_355_443"
    code = f"import mmap, os, sys\na = mmap.mmap(-1, 64 << 20)\nb = {fill}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield request.param, process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_a_sample_is_of_what_was_touched(filled: tuple[str, int]) -> None:
    what, pid = filled
    taken = sample.memory([pid])
    assert sample.WANTED / 4 < len(taken) <= sample.WANTED
    tried = try_out(taken)
    assert tried.ratio < 2 if what == "noise" else tried.ratio > 5


def test_a_process_that_is_gone_has_no_sample() -> None:
    assert sample.memory([2**22 + 1]) == b""


@pytest.mark.parametrize(
    ("filled", "link", "compress", "compresses"),
    [
        ("text", SLOW, "auto", True),
        ("noise", SLOW, "auto", False),
        ("text", FAST, "auto", False),
        ("noise", FAST, "zstd", True),
        ("text", SLOW, "none", False),
    ],
    indirect=["filled"],
)
async def test_it_is_compressed_where_that_is_faster(
    filled: tuple[str, int], link: float, compress: str, compresses: bool
) -> None:
    found = await choose(wanted(compress=compress), link, [filled[1]])
    assert found.zstd is compresses, found.reason
    assert ("as asked" in found.reason) is (compress != "auto")
    if compress == "auto":
        assert ("to 1 at" in found.reason) is (link == SLOW)
        assert (found.rate > link) is compresses


@pytest.mark.parametrize("filled", ["text"], indirect=True)
async def test_a_limit_of_bandwidth_makes_the_link_as_slow(filled: tuple[str, int]) -> None:
    found = await choose(wanted(bandwidth=1 << 20), FAST, [filled[1]])
    assert found.zstd
    assert found.rate > 10 << 20, "in the blackout no limit holds, and it is what is predicted by this"


def wanted(**fields: object) -> Migrate:
    return Migrate.model_validate({"id": "c-1", "container": "web", "to": "beta", **fields})
