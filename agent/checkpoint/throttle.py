"""A container's processor time, taken away for a while: so that it writes less than the link carries (pre-copy).

What it was allowed before is noted in a file first, beside the dump, where an agent that comes after a crash looks. A
reboot ends the cgroup with the container. While CRIU takes the memory the throttle is off: its parasite runs in the
tasks, on their time.
"""

import contextlib
import json
from pathlib import Path

from agent.checkpoint.freezer import CGROUP_ROOT

PERIOD_US = 100_000
LEAST_US = 1000
"""The kernel's own limit."""


def used_seconds(pid: int) -> float:
    """Processor time that the process's cgroup has used so far; 0 where that can't be told."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        place, version = _place(pid, "cpuacct")
        if version == 1:
            return int((place / "cpuacct.usage").read_text()) / 1e9
        pairs = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
        return int(pairs["usage_usec"]) / 1e6
    return 0.0


class Throttle:
    """Of one container, while one move of it is under way."""

    def __init__(self, folder: Path) -> None:
        self._note = folder / "throttle.json"

    def limit(self, pid: int, processors: float) -> None:
        """Let it have so many processors; less than one is a part of one. Raises OSError."""
        place, version = _place(pid)
        file = place / ("cpu.max" if version == 2 else "cpu.cfs_quota_us")
        if not self._note.exists():
            part = self._note.with_suffix(".part")
            part.write_text(json.dumps({"file": str(file), "was": file.read_text().strip()}))
            part.replace(self._note)
        quota = max(LEAST_US, int(processors * PERIOD_US))
        if version == 1:
            quota = max(LEAST_US, int(processors * int((place / "cpu.cfs_period_us").read_text())))
        file.write_text(f"{quota} {PERIOD_US}" if version == 2 else str(quota))

    def pause(self) -> None:
        """Let it have all that it was allowed, for now. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # never throttled, or its cgroup is gone
            note = json.loads(self._note.read_text())
            Path(note["file"]).write_text(note["was"])

    def take_back(self) -> None:
        """Make sure that it has what it was allowed, and that nothing is noted any more. Raises OSError."""
        self.pause()
        self._note.unlink(missing_ok=True)


def _place(pid: int, controller: str = "cpu") -> tuple[Path, int]:
    """The process's folder of a controller, and its version."""
    unified = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and path != "/":
            return CGROUP_ROOT / controllers / path.lstrip("/"), 1
        if not controllers:
            unified = path
    if unified in ("", "/"):
        raise OSError(f"process {pid} is in no cgroup of its own")
    return CGROUP_ROOT / unified.lstrip("/"), 2
