"""What CRIU has to say after a dump or a restore: its errors, and its statistics as proof and as figures."""

import shutil
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from agent.base.protobuf import fields

FAILED = Path("/var/lib/transship/failed")
KEPT = 50
LINES_BEFORE = 5
MOST_LINES = 40
# Said by every CRIU on a machine without CAP_SYS_RESOURCE; harmless.
HARMLESS = ("Can't setup RLIMIT_NOFILE", "rlimit: ")
STATS_HEADER = struct.Struct("<III")
"""Magic of service images, magic of statistics, length of the message."""


def digest(path: Path) -> tuple[str, ...]:
    """Each error line of a CRIU log with the few lines before it; the log's end if there is none."""
    found: list[str] = []
    before: deque[str] = deque(maxlen=LINES_BEFORE)
    try:
        with path.open(errors="replace") as log:
            for line in log:
                text = line.rstrip()
                if "Error" in text and not any(word in text for word in HARMLESS):
                    found += [*before, text]
                    before.clear()
                else:
                    before.append(text)
    except OSError:
        return ()
    return tuple(found[-MOST_LINES:] or before)


def keep(log: Path, name: str) -> Path | None:
    """Copy a failed attempt's whole log to where it outlives the attempt; where that is, or None if there is no log.

    Only the newest `KEPT` are kept.
    """
    if not log.exists():
        return None
    FAILED.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = FAILED / name
    shutil.copyfile(log, place)
    place.chmod(0o600)
    for old in sorted(FAILED.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return place


@dataclass(frozen=True, slots=True)
class DumpStats:
    """CRIU's own figures of a dump; times in milliseconds."""

    freezing_ms: float
    frozen_ms: float
    memory_ms: float
    pages_written: int


@dataclass(frozen=True, slots=True)
class RestoreStats:
    """CRIU's own figures of a restore; times in milliseconds."""

    forking_ms: float
    restore_ms: float
    pages_restored: int


def _entry(path: Path, which: int) -> dict[int, int] | None:
    try:
        data = path.read_bytes()
        _, _, length = STATS_HEADER.unpack_from(data)
        inner = fields(data[STATS_HEADER.size : STATS_HEADER.size + length]).get(which)
        if not isinstance(inner, bytes):
            return None
        return {key: value for key, value in fields(inner).items() if isinstance(value, int)}
    except (OSError, struct.error, IndexError):
        return None


def dump_stats(work: Path) -> DumpStats | None:
    """The figures of the dump whose work folder this is; None where CRIU wrote none."""
    found = _entry(work / "stats-dump", 1)
    if found is None:
        return None
    return DumpStats(found.get(1, 0) / 1000, found.get(2, 0) / 1000, found.get(3, 0) / 1000, found.get(7, 0))


def restore_stats(work: Path) -> RestoreStats | None:
    """The figures of the restore whose work folder this is; None where CRIU wrote none: it was no restore."""
    found = _entry(work / "stats-restore", 2)
    if found is None:
        return None
    return RestoreStats(found.get(3, 0) / 1000, found.get(4, 0) / 1000, found.get(5, 0))
