"""A container's log while dockerd rotates it, and the last half line out of dockerd's memory."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.prework import container_log, printed
from agent.prework.container_log import STDERR, STDOUT, Mark
from agent.prework.printed import MARKER


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    found = container_log.places(tmp_path, "c1")
    found["local.log"].parent.mkdir(parents=True)
    return found


@pytest.fixture
def current(places: dict[str, Path]) -> Path:
    return places["json.log"]


def row(text: str, stream: str = "stdout") -> bytes:
    entry = {"log": text, "stream": stream, "time": "2026-01-01T00:00:00Z"}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def write(path: Path, *texts: str) -> None:
    with path.open("ab") as file:
        file.writelines(map(row, texts))


def rotate(places: dict[str, Path], keep: int = 3, pack: bool = False) -> None:
    """As dockerd does: every file one number up, the last one goes, a new one is begun."""
    names = ["json.log", *(f"json.log.{number}" for number in range(1, keep))]
    ending = ".gz" if pack else ""
    places[names[-1] + ending].unlink(missing_ok=True)
    for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        source = places[newer + ("" if newer == "json.log" else ending)]
        if source.exists() and newer == "json.log" and pack:
            places[older + ending].write_bytes(gzip.compress(source.read_bytes()))
            source.unlink()
        elif source.exists():
            source.rename(places[older + ending])
    places["json.log"].touch()


def marked(places: dict[str, Path]) -> Mark:
    found = container_log.mark(places)
    assert found is not None
    return found


def since(places: dict[str, Path], mark: Mark) -> list[str]:
    found = [text.decode() for _, text in container_log.entries_since(places, mark)]
    mark.close()
    return found


def test_there_may_be_no_log(places: dict[str, Path]) -> None:
    assert container_log.mark(places) is None


def test_only_what_came_after_the_mark_is_new(places: dict[str, Path], current: Path) -> None:
    write(current, "a\n", "b\n")
    mark = marked(places)
    write(current, "c\n")
    assert since(places, mark) == ["c\n"]


def test_the_mark_holds_the_files_as_they_were(places: dict[str, Path], current: Path) -> None:
    write(current, "a\n")
    rotate(places)
    write(current, "b\n")
    mark = marked(places)
    before = {name: size for name, _, size in mark.segments()}
    assert list(before) == ["json.log", "json.log.1"]
    for number in range(5):
        write(current, f"{number}\n")
        rotate(places)
    texts = {name: path.read_bytes()[:size] for name, path, size in mark.segments()}
    assert texts == {"json.log": row("b\n"), "json.log.1": row("a\n")}
    mark.close()


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("times", [1, 2])
def test_rotations_are_followed(places: dict[str, Path], current: Path, times: int, pack: bool) -> None:
    write(current, "a\n")
    mark = marked(places)
    wanted = []
    for number in range(times):
        write(current, f"{number}\n")
        wanted.append(f"{number}\n")
        rotate(places, pack=pack)
    write(current, "z\n")
    assert since(places, mark) == [*wanted, "z\n"]


def test_what_was_rotated_away_is_not_shown_by_docker_either(places: dict[str, Path], current: Path) -> None:
    mark_at = "first\n"
    write(current, mark_at)
    mark = marked(places)
    for number in range(6):
        write(current, f"{number}\n")
        rotate(places, keep=3)
    write(current, "z\n")
    found = since(places, mark)
    assert found[-3:] == ["4\n", "5\n", "z\n"]
    assert found == sorted(found), "in order"


def test_a_single_file_is_begun_anew(places: dict[str, Path], current: Path) -> None:
    """max-size without max-file: dockerd unlinks it, and the kernel may use its inode number again."""
    write(current, "a\n")
    mark = marked(places)
    write(current, "b\n")
    current.unlink()
    write(current, "c\n")
    assert since(places, mark) == ["b\n", "c\n"]


def test_an_entry_that_is_being_written_is_not_read(places: dict[str, Path], current: Path) -> None:
    write(current, "a\n")
    mark = marked(places)
    with current.open("ab") as file:
        file.write(row("b\n")[:-5])
    assert since(places, mark) == []


@pytest.mark.parametrize("driver", ["json.log", "local.log"])
@pytest.mark.parametrize("there", [1, 3, 4, 40, -4, -1])
def test_the_mark_is_never_within_an_entry(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, driver: str, there: int
) -> None:
    """dockerd is in the middle of writing one, of which the kernel shows the first pages."""
    one, other, last = (row(text) if driver == "json.log" else local(text.encode()) for text in ("1", "2" * 90, "3"))
    places[driver].write_bytes(one + other[:there])

    def is_written(_: float) -> None:
        places[driver].write_bytes(one + other)

    monkeypatch.setattr("time.sleep", is_written)
    mark = marked(places)
    assert mark.size == len(one + other)
    places[driver].write_bytes(one + other + last)
    ended = "3" if driver == "json.log" else "3\n"
    assert since(places, mark) == [ended]


def test_an_entry_that_an_earlier_dockerd_has_not_completed_goes_along(places: dict[str, Path]) -> None:
    places["local.log"].write_bytes(local(b"1") + local(b"2" * 90)[:50])
    mark = marked(places)
    assert mark.size == len(local(b"1")) + 50
    mark.close()


def test_streams_are_told_apart_and_framed() -> None:
    frames = b"".join(container_log.frames([(STDOUT, b"a\n"), (STDERR, b"bc")]))
    assert frames == b"\x01\0\0\0\x02a\n\x02\0\0\0\x02bc"


# local


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def local(text: bytes, *, partial: bool = False, last: bool = False, stream: bytes = b"stdout") -> bytes:
    body = field(1, stream) + field(2, 1234567) + field(3, text)
    if partial:
        about = field(1, 1) if last else b""
        body += field(4, 1) + field(5, about + field(2, b"id") + field(3, 1))
    return struct.pack(">I", len(body)) + body + struct.pack(">I", len(body))


def test_a_long_line_of_the_local_driver_ends_once(places: dict[str, Path]) -> None:
    path = places["local.log"]
    path.write_bytes(local(b"before"))
    mark = marked(places)
    with path.open("ab") as file:
        file.write(local(b"x" * 9, partial=True) + local(b"end", partial=True, last=True))
        file.write(local(b"next", stream=b"stderr") + local(b"cut")[:-2])
    entries = list(container_log.entries_since(places, mark))
    mark.close()
    assert entries == [(STDOUT, b"x" * 9), (STDOUT, b"end\n"), (STDERR, b"next\n")]


# The last half line


@pytest.fixture
def shim() -> Iterator[tuple[int, int, int]]:
    """A child that prints into two pipes which this process reads, as a shim does; its pid, and the read ends."""
    (out, out_end), (err, err_end), (ready, ready_end) = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(out_end, 1)
        os.dup2(err_end, 2)
        os.write(ready_end, b"x")
        os.read(os.pipe()[0], 1)
        os._exit(0)
    for fd in (out_end, err_end, ready_end):
        os.close(fd)
    assert os.read(ready, 1) == b"x"
    yield pid, out, err
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for fd in (out, err, ready):
        os.close(fd)


async def test_the_marker_is_put_behind_all_that_was_printed(shim: tuple[int, int, int]) -> None:
    pid, out, err = shim
    Path(f"/proc/{pid}/fd/1").write_bytes(b"a half li")
    assert await printed.marked(pid) == {STDOUT, STDERR}
    assert os.read(out, 100) == b"a half li" + MARKER
    assert os.read(err, 100) == MARKER


async def test_a_full_pipe_is_waited_for(shim: tuple[int, int, int]) -> None:
    pid, out, _ = shim
    Path(f"/proc/{pid}/fd/1").write_bytes(b"x" * 65536)
    marking = asyncio.create_task(printed.marked(pid))
    await asyncio.sleep(0.01)
    assert not marking.done()
    assert len(os.read(out, 65536)) == 65536
    assert STDOUT in await marking
    assert os.read(out, 100) == MARKER


async def test_a_pipe_of_the_programs_own_is_left_alone() -> None:
    """A program may have put its own pipe in the place of its output: what is in there is none of ours."""
    argv = ["sh", "-c", "sleep 1000 | cat; true"]
    shell = subprocess.Popen(argv, start_new_session=True)  # noqa: ASYNC220
    try:
        while len(found := children(shell.pid)) < 2:
            await asyncio.sleep(0.001)
        first = min(found)
        while os.readlink(f"/proc/{first}/exe").endswith("sh"):
            await asyncio.sleep(0.001)
        assert os.readlink(f"/proc/{first}/fd/1").startswith("pipe:")
        assert STDOUT not in await printed.marked(first)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


async def test_the_half_line_goes_along_without_its_marker(places: dict[str, Path], current: Path) -> None:
    write(current, "a\n")
    mark = marked(places)
    write(current, "b\n", "a half li" + MARKER.decode())
    with current.open("ab") as file:
        file.write(row(MARKER.decode(), "stderr"))
    entries = await printed.all_of(places, mark, frozenset({STDOUT, STDERR}))
    mark.close()
    assert entries == [(STDOUT, b"b\n"), (STDOUT, b"a half li")]


async def test_what_dockerd_has_not_written_yet_is_waited_for(places: dict[str, Path], current: Path) -> None:
    write(current, "a\n")
    mark = marked(places)
    reading = asyncio.create_task(printed.all_of(places, mark, frozenset({STDOUT})))
    await asyncio.sleep(0.01)
    assert not reading.done()
    write(current, "b\n", MARKER.decode())
    assert await reading == [(STDOUT, b"b\n")]
    mark.close()
