"""A rate that is kept to, shared, and changed by whom it keeps waiting."""

import asyncio
import time

import pytest

from agent.base.errors import Refused
from agent.base.pace import Pace
from agent.cli.commands import bytes_a_second

MIB = 1 << 20


async def seconds(pace: Pace, *counts: int) -> float:
    began = time.monotonic()
    for count in counts:
        await pace.take(count)
    return time.monotonic() - began


async def test_without_a_rate_nothing_waits() -> None:
    assert await seconds(Pace(), *[1 << 40] * 100) < 1


async def test_a_rate_is_kept_to_over_many_pieces() -> None:
    """The first goes at once: what it takes its time for is the next."""
    assert 0.19 <= await seconds(Pace(10 * MIB), *[MIB // 4] * 9) < 1


async def test_what_was_not_taken_is_not_saved_up() -> None:
    pace = Pace(10 * MIB)
    await pace.take(1)
    await asyncio.sleep(0.1)
    assert await seconds(pace, MIB, MIB) >= 0.09


async def test_two_that_share_it_have_half_each() -> None:
    pace = Pace(10 * MIB)
    both = await asyncio.gather(seconds(pace, *[MIB // 2] * 3), seconds(pace, *[MIB // 2] * 3))
    assert max(both) >= 0.24


@pytest.mark.parametrize("rate", [None, 1 << 40])
async def test_who_waits_goes_on_at_once_when_it_is_changed(rate: int | None) -> None:
    pace = Pace(1)
    await pace.take(MIB)
    waiting = asyncio.create_task(seconds(pace, MIB, MIB))
    await asyncio.sleep(0.05)
    pace.change(rate)
    async with asyncio.timeout(5):
        await waiting
    assert pace.rate == rate


@pytest.mark.parametrize(
    ("text", "rate"), [("none", None), ("1", 1), ("500k", 500 << 10), ("20M", 20 << 20), ("1G", 1 << 30)]
)
def test_rates_as_they_are_typed(text: str, rate: int | None) -> None:
    assert bytes_a_second(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "20MB", "fast"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Refused, match="is no rate") as refused:
        bytes_a_second(text)
    assert "20M" in refused.value.hint
