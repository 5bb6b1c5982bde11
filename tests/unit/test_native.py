"""Docker's own checkpoints: which daemons are refused, and what proves that a start was a restore."""

import struct

import pytest

from agent.base.errors import Refused
from agent.base.protobuf import packed
from agent.checkpoint import native


@pytest.mark.parametrize("version", ["28.0.0", "28.5.2+dfsg", "29.1"])
def test_where_it_is_broken_the_way_that_works_is_named(version: str) -> None:
    with pytest.raises(Refused, match="its own checkpoints") as caught:
        native.check_engine(version, experimental=True)
    assert "transship checkpoint" in caught.value.hint


def test_where_it_is_not_offered_the_hint_says_how() -> None:
    with pytest.raises(Refused, match="does not offer") as caught:
        native.check_engine("26.1.5", experimental=False)
    assert "experimental" in caught.value.hint
    native.check_engine("26.1.5", experimental=True)


def image(stack: int) -> bytes:
    entry = packed(1, 0x400000) + packed(native.START_STACK, stack)
    return struct.pack("<III", 0x54564319, 0x57492820, len(entry)) + entry


STAT = "1 (py (th) on) S " + " ".join(str(number) for number in range(4, 53))
"""Each field is its own number."""


def test_a_restored_process_has_its_stack_where_it_was() -> None:
    assert native.is_restored(STAT, image(28))


def test_a_cold_start_is_found_out() -> None:
    assert not native.is_restored(STAT, image(0x7FFE12345670))
    assert not native.is_restored(STAT, b"")
    assert not native.is_restored(STAT, image(28)[:14])
