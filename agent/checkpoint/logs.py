"""What CRIU has to say after a dump or a restore that failed: its errors, and its whole log for later."""

import shutil
from collections import deque
from pathlib import Path

FAILED = Path("/var/lib/transship/failed")
KEPT = 50
LINES_BEFORE = 5
MOST_LINES = 40
# Said by every CRIU on a machine without CAP_SYS_RESOURCE; harmless.
HARMLESS = ("Can't setup RLIMIT_NOFILE", "rlimit: ")


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
