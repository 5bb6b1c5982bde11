"""Calls that a dump has interrupted: which are made again, with what; and the images of threads that say so."""

from pathlib import Path

import pytest

from agent.base.protobuf import fields, inner, packed
from agent.checkpoint import calls, cores

EINTR = 2**64 - 4
STACK, HEAP, LOW = 0x7FFC_1234_5678, 0x5555_1234_5678, 0x404000
IP = 0x7F00_0000_1000
HEAD = (0x54564319).to_bytes(4, "little") + (0x55053847).to_bytes(4, "little")


def registers(call: int, **changed: int) -> dict[str, int]:
    return {"r10": 0, "r9": 0, "ax": EINTR, "dx": 0, "si": 0, "di": 0, "orig_ax": call, "ip": IP} | changed


@pytest.mark.parametrize(
    ("found", "again"),
    [
        # a sleep goes on with what is left of it, where the program has asked for that
        (registers(35, di=STACK, si=HEAP), {"orig_ax": 35, "di": HEAP}),
        (registers(35, di=STACK, si=STACK), {"orig_ax": 35, "di": STACK}),
        (registers(35, di=STACK), {"orig_ax": 35}),
        (registers(230, di=1, dx=STACK, r10=HEAP), {"orig_ax": 230, "dx": HEAP}),
        (registers(230, dx=STACK), {"orig_ax": 230}),
        # others as they were
        (registers(7, di=STACK, si=1, dx=2**32 - 1), {"orig_ax": 7}),
        (registers(202, di=HEAP, si=9 | 128, r10=STACK), {"orig_ax": 202}),
        (registers(202, di=HEAP, si=9 | 128 | 256, r10=STACK), {"orig_ax": 202}),
        # a time-out that is relative, in a call whose callers look again anyway
        (registers(202, di=HEAP, si=0 | 128, r10=STACK), None),
        # ended by Linux itself
        (registers(232, di=5, si=STACK, dx=8, r10=2**64 - 1), None),
        (registers(2**64 - 1), None),
        # not interrupted at all
        (registers(35, di=STACK, si=HEAP, ax=0), None),
    ],
)
def test_only_what_linux_would_have_gone_on_with_is_made_again(
    found: dict[str, int], again: dict[str, int] | None
) -> None:
    assert calls.again(found) == again


@pytest.mark.parametrize(
    ("found", "call"),
    [
        (registers(219, di=STACK, si=HEAP), 35),
        (registers(219, di=0, si=0, dx=STACK, r10=STACK), 230),
        (registers(219, di=STACK, si=3, dx=5000), 7),
        (registers(219, di=HEAP, si=9 | 128, r10=STACK, r9=2**32 - 1), 202),
        (registers(219, di=HEAP, si=0 | 128, r10=STACK), None),  # a futex, relative
        (registers(219, di=HEAP, si=9 | 128, r10=STACK), None),  # or a poll of 137
        (registers(219, di=STACK, si=0), None),  # a sleep, a poll of nothing, or a futex
        (registers(219, di=0, si=0, dx=5000), None),  # a poll of nothing, or a sleep of a small program
        (registers(219, di=0, si=0, dx=LOW), None),
    ],
)
def test_one_that_was_interrupted_before_is_known_by_its_arguments_or_not_at_all(
    found: dict[str, int], call: int | None
) -> None:
    again = calls.again(found)
    assert (again or {}).get("orig_ax") == call


def queue(*signals: int) -> bytes:
    return b"".join(packed(1, packed(1, number.to_bytes(4, "little") + bytes(124))) for number in signals)


def core(
    found: dict[str, int], mode: int = 1, own: bytes = b"", shared: bytes | None = None, blocked: int = 0
) -> bytes:
    values = dict.fromkeys(range(1, 28), 0) | {cores.NUMBERS[name]: value for name, value in found.items()}
    content = b"".join(packed(number, value) for number, value in {**values, 28: mode}.items())
    x86 = packed(1, 0x7F0000000000) + packed(2, content) + packed(3, packed(1, 0x37F))
    task = packed(3, packed(1, 1) + packed(6, b"sleep") + packed(10, shared)) if shared is not None else b""
    thread = packed(5, packed(1, 0) + packed(2, 24) + packed(6, blocked) + packed(9, own))
    entry = packed(1, 1) + packed(2, x86) + task + packed(4, packed(1, 1)) + thread
    return HEAD + len(entry).to_bytes(4, "little") + entry


def write(folder: Path, **content: bytes) -> None:
    for name, data in content.items():
        (folder / f"core-{name.removeprefix('of_')}.img").write_bytes(data)
    process = packed(1, 1) + packed(2, 0) + packed(3, 1) + packed(4, 1) + packed(5, 1) + packed(5, 7)
    (folder / "pstree.img").write_bytes(HEAD + len(process).to_bytes(4, "little") + process)


def read(folder: Path, thread: int) -> dict[str, int]:
    data = (folder / f"core-{thread}.img").read_bytes()
    assert data.startswith(HEAD)
    assert int.from_bytes(data[8:12], "little") == len(data) - 12
    found = fields(inner(data[12:], 2, 2))
    return {name: int(found[number]) for name, number in cores.NUMBERS.items()}


def test_a_thread_is_restored_in_front_of_its_call(tmp_path: Path) -> None:
    asleep, busy = registers(230, dx=STACK, r10=HEAP), registers(2**64 - 1, ax=5)
    write(tmp_path, of_1=core(busy, shared=b""), of_7=core(asleep))
    before = (tmp_path / "core-1.img").read_bytes()
    was = (tmp_path / "core-7.img").read_bytes()
    assert cores.mend(tmp_path) == 1
    assert read(tmp_path, 7) == asleep | {"ax": 230, "dx": HEAP, "ip": IP - 2}
    assert (tmp_path / "core-1.img").read_bytes() == before
    now, then = fields((tmp_path / "core-7.img").read_bytes()[12:]), fields(was[12:])
    assert {number for number in then if now[number] != then[number]} == {2}, "nothing but its registers"
    assert cores.mend(tmp_path) == 0, "once is enough"


def test_a_program_of_32_bits_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, of_1=core(registers(7, di=LOW, si=1), mode=2, shared=b""))
    assert cores.mend(tmp_path) == 0


@pytest.mark.parametrize(
    ("own", "shared", "blocked", "mended"),
    [
        ((), (), 0, 1),
        ((10,), (), 0, 0),
        ((), (15,), 0, 0),
        ((10,), (15,), 1 << 9, 0),
        ((10,), (15,), 1 << 9 | 1 << 14, 1),  # both have to wait
    ],
)
def test_a_signal_that_waits_finds_the_call_interrupted(
    tmp_path: Path, own: tuple[int, ...], shared: tuple[int, ...], blocked: int, mended: int
) -> None:
    asleep = registers(35, di=STACK, si=STACK)
    write(
        tmp_path,
        of_1=core(registers(2**64 - 1, ax=0), shared=queue(*shared)),
        of_7=core(asleep, own=queue(*own), blocked=blocked),
    )
    assert cores.mend(tmp_path) == mended


@pytest.mark.parametrize(
    ("said", "so"),
    [
        ("35 0x7ffc12345678 0x7ffc12345678 0x0 0x0 0x0 0x0 0x7ffc12345600 0x7f0000001000\n", True),
        ("7 0x7ffc12345678 0x1 0xffffffff 0x0 0x0 0x0 0x7ffc12345600 0x7f0000001000\n", True),
        ("230 0x1 0x1 0x7ffc12345678 0x0 0x0 0x0 0x7ffc12345600 0x7f0000001000\n", False),  # until a time of the clock
        ("232 0x5 0x7ffc12345678 0x8 0xffffffff 0x0 0x8 0x7ffc12345600 0x7f0000001000\n", False),
        ("-1 0x7ffc12345600 0x7f0000001000\n", False),
        ("running\n", False),
        ("", False),
    ],
)
def test_who_waits_in_one_is_told_by_the_kernel(said: str, so: bool) -> None:
    assert calls.waiting(said) is so
