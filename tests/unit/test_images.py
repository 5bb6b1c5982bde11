"""CRIU's images before a restore: timers with a tick that nobody has read, connections whose window was shut."""

from pathlib import Path

import pytest

from agent.base.protobuf import fields, packed
from agent.checkpoint import images

HEAD = images.MAGIC.pack(0x54564319, 0x56303138)


def timer(ticks: int, left: tuple[int, int], every: tuple[int, int]) -> bytes:
    values = {1: 7, 2: 0, 4: 1, 5: ticks, 6: 0, 7: left[0], 8: left[1], 9: every[0], 10: every[1]}
    owner = packed(3, packed(1, 0) + packed(2, 0))
    content = b"".join(packed(number, value) for number, value in values.items()) + owner
    return packed(1, 9) + packed(2, 300) + packed(12, content)


def regular(name: bytes) -> bytes:
    return packed(1, 1) + packed(2, 5) + packed(3, packed(1, 5) + packed(7, name))


def write(folder: Path, *entries: bytes) -> None:
    (folder / images.FILES).write_bytes(HEAD + b"".join(images.SIZE.pack(len(each)) + each for each in entries))


def read(folder: Path) -> list[bytes]:
    data, at, found = (folder / images.FILES).read_bytes(), len(HEAD), []
    assert data.startswith(HEAD)
    while at < len(data):
        (size,) = images.SIZE.unpack_from(data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def test_a_periodic_timer_with_an_unread_tick_goes_on(tmp_path: Path) -> None:
    before = [regular(b"/one"), timer(1, (0, 0), (3, 50_000_000)), regular(b"x" * 300)]
    write(tmp_path, *before)
    assert images.mend(tmp_path) == 1
    first, mended, last = read(tmp_path)
    assert [first, last] == [before[0], before[2]]
    content = fields(mended)[12]
    assert isinstance(content, bytes)
    found = fields(content)
    assert (found[5], found[7], found[8], found[9], found[10]) == (1, 3, 50_000_000, 3, 50_000_000)
    assert images.mend(tmp_path) == 0, "once is enough"


@pytest.mark.parametrize(
    ("ticks", "left", "every"),
    [
        (0, (0, 20), (0, 50)),  # it runs
        (0, (0, 0), (0, 50)),  # it is off
        (1, (0, 0), (0, 0)),  # it was to go off once
        (2, (1, 0), (2, 0)),  # it runs, and some ticks were not read
    ],
)
def test_other_timers_are_left_as_they_are(
    tmp_path: Path, ticks: int, left: tuple[int, int], every: tuple[int, int]
) -> None:
    write(tmp_path, timer(ticks, left, every))
    before = (tmp_path / images.FILES).read_bytes()
    assert images.mend(tmp_path) == 0
    assert (tmp_path / images.FILES).read_bytes() == before


def stream(in_seq: int, send_wl1: int, receive_window: int) -> bytes:
    values = {1: 5, 2: in_seq, 3: 3, 4: 9, 5: 7, 6: 7, 13: send_wl1, 14: 100, 15: 200, 16: receive_window, 17: in_seq}
    entry = b"".join(packed(number, value) for number, value in values.items())
    return HEAD + images.SIZE.pack(len(entry)) + entry + b"queue" + b"out"


@pytest.mark.parametrize(
    ("in_seq", "send_wl1", "receive_window", "becomes"),
    [
        (1000, 1090, 0, 1000),
        (1000, 5000, 1000, 2000),
        (2**32 - 10, 90, 20, 10),  # the numbers go round
        (1000, 1090, 90, 1090),  # within the window
        (1000, 900, 0, 900),
        (5, 2**32 - 5, 0, 2**32 - 5),
    ],
)
def test_no_segment_has_come_from_beyond_the_window(
    tmp_path: Path, in_seq: int, send_wl1: int, receive_window: int, becomes: int
) -> None:
    write(tmp_path, regular(b"/one"))
    path = tmp_path / "tcp-stream-1a.img"
    path.write_bytes(before := stream(in_seq, send_wl1, receive_window))
    assert images.mend(tmp_path) == (becomes != send_wl1)
    after = path.read_bytes()
    (size,) = images.SIZE.unpack_from(after, len(HEAD))
    entry, queues = after[len(HEAD) + 4 :][:size], after[len(HEAD) + 4 + size :]
    assert after.startswith(HEAD)
    assert queues == b"queueout"
    assert fields(entry) == fields(before[len(HEAD) + 4 : -8]) | {13: becomes}
    assert images.mend(tmp_path) == 0, "once is enough"


def test_what_an_older_dump_does_not_say_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, regular(b"/one"))
    entry = packed(1, 0) + packed(2, 7)
    (tmp_path / "tcp-stream-1.img").write_bytes(before := HEAD + images.SIZE.pack(len(entry)) + entry)
    assert images.mend(tmp_path) == 0
    assert (tmp_path / "tcp-stream-1.img").read_bytes() == before
