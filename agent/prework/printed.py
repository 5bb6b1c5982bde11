"""The last that a frozen container has printed: from its pipes through dockerd into its log, half lines included.

dockerd writes a line into the log when its end has come; a half one it keeps in memory, where nobody can read it. So a
line that looks empty is put behind what the container has printed: it ends the half line, and where it is in the log,
everything before it is, too. On the way to the target it is taken out again, and the half line goes on there. Only a
move that is taken back leaves it: in the log as an empty line.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from agent.base.errors import StepFailed
from agent.prework import container_log
from agent.prework.container_log import NOTHING_SEEN, Mark

DRAIN_SECONDS = 1.0
"""For dockerd to write it; it takes some milliseconds. What has not come by then stays here."""
LOOK_SECONDS = 0.001
MARKER = NOTHING_SEEN + b"\n"


async def marked(pid: int) -> frozenset[int]:
    """Put the marker behind all that the container has printed; the streams that it is on."""
    end = time.monotonic() + DRAIN_SECONDS
    pipes: dict[str, int] = {}
    for stream in (container_log.STDOUT, container_log.STDERR):
        with contextlib.suppress(OSError):
            name = str(Path(f"/proc/{pid}/fd/{stream}").readlink())
            if name.startswith("pipe:") and name in _held_by_shim(pid):  # a program may have put one of its own there
                pipes.setdefault(name, stream)
    marked = set()
    for stream in pipes.values():
        fd = os.open(f"/proc/{pid}/fd/{stream}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            marked |= {stream} if await _write(fd, end) else set()
        finally:
            os.close(fd)
    return frozenset(marked)


def _held_by_shim(pid: int) -> set[str]:
    """What the container's parent has open: containerd's shim, which reads what the container prints."""
    status = Path(f"/proc/{pid}/status").read_text()
    [parent] = [line.split()[1] for line in status.splitlines() if line.startswith("PPid:")]
    names = set()
    for path in Path(f"/proc/{parent}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.add(str(path.readlink()))
    return names


async def _write(fd: int, end: float) -> bool:
    """All of it or nothing, as for any write that is so small; a full pipe is waited for."""
    while time.monotonic() < end:
        try:
            os.write(fd, MARKER)
        except BlockingIOError:
            await asyncio.sleep(LOOK_SECONDS)
        except OSError:  # nobody reads: a log driver that keeps nothing
            return False
        else:
            return True
    return False


async def all_of(files: Mapping[str, Path], since: Mark, streams: frozenset[int]) -> list[tuple[int, bytes]]:
    """Every entry since the mark, and none of ours."""
    end = time.monotonic() + DRAIN_SECONDS
    while True:
        seen = _version(files[since.name])
        try:
            entries = await asyncio.to_thread(container_log.entries_since, files, since)
        except EOFError:
            if time.monotonic() > end:
                raise StepFailed("the container's log is being packed all the time", hint="try again") from None
            await asyncio.sleep(LOOK_SECONDS)
            continue
        else:
            arrived = {stream for stream, text in entries if text.endswith(MARKER)}
            if streams <= arrived or time.monotonic() > end:
                return [(stream, text.removesuffix(MARKER)) for stream, text in entries if text != MARKER]
        # it may be much, and is read anew each time: only when there is more
        while _version(files[since.name]) == seen and time.monotonic() <= end:
            await asyncio.sleep(LOOK_SECONDS)


def _version(path: Path) -> tuple[int, int] | None:
    """What another one has when something was written to it, or when it was rotated away."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size
