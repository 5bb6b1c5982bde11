"""How large CRIU's images of a container will be: its memory, and what has no place in the file passes.

That is: what lies in tmpfs, in files without a name, in the queues of sockets. An estimate from above where it can be
had, since the room for the images is limited to it; the container runs on meanwhile.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.checkpoint import proc
from agent.network import sockets


def image_bytes(pid: int, tasks: Iterable[int]) -> int:
    """Of a container whose first process is `pid`; blocks for some milliseconds."""
    pids = list(tasks)
    resident = sum(task.resident_bytes for task in proc.tasks(pids))
    with contextlib.suppress(OSError):
        resident += sockets.buffered(pid)
    return resident + _in_tmpfs(pid) + _nameless(pids)


def _in_tmpfs(pid: int) -> int:
    """CRIU packs the content of every tmpfs, /dev/shm among them."""
    used: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            if rest.startswith("tmpfs "):
                place = f"/proc/{pid}/root{fields.split()[4]}"
                with contextlib.suppress(OSError):
                    found = os.statvfs(place)
                    used[os.stat(place).st_dev] = (found.f_blocks - found.f_bfree) * found.f_frsize  # noqa: PTH116
    return sum(used.values())


def _nameless(pids: Iterable[int]) -> int:
    """Open files without a name, memfd among them: CRIU takes them along whole."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(fd.readlink()).endswith(" (deleted)"):
                        about = fd.stat()
                        if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
                            found[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(found.values())
