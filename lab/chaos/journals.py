"""How far a migration is, read from the agents' journals on their disks: what accidents wait for, what was decided."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lab.host import Host
from lab.shell import LabError

FILE = "journal/journal.sqlite"
"""On the disk that ground.py mounts for both the host and the machine that the campaign runs on."""
ENDED = ("done", "refused", "rolled-back", "discarded")
BUSY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a journal's history."""

    row: int
    migration: str
    role: str
    phase: str
    seen_at: float
    """On this process's monotonic clock, when it was read."""


class JournalReader:
    """One host's journal. What can't be read now (no host, no file, no disk) reads as nothing new."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._db: sqlite3.Connection | None = None
        self._last = 0
        self._file: tuple[int, int] | None = None

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def forget_older(self) -> None:
        """Let what is in it by now be old."""
        for _ in self.news():
            pass

    def news(self) -> Iterator[Step]:
        """What was written since the last look, in order."""
        rows = self._read("SELECT rowid, id, role, phase FROM history WHERE rowid > ? ORDER BY rowid", self._last)
        for row, migration, role, phase in rows:
            self._last = row
            yield Step(row, migration, role, phase, time.monotonic())

    def phases(self, migration: str) -> dict[str, str]:
        """Role -> phase of a migration."""
        return dict(self._read("SELECT role, phase FROM migrations WHERE id=?", migration))

    def decided_at(self, migration: str) -> float | None:
        """When the source's decision was written, on the wall clock; None where it was not."""
        query = "SELECT at FROM history WHERE id=? AND role='source' AND phase='committed' ORDER BY rowid"
        rows = self._read(query, migration)
        return datetime.fromisoformat(rows[0][0]).timestamp() if rows else None

    def unfinished(self) -> list[tuple[str, str, str]]:
        """Id, role and phase of every migration that has not ended."""
        marks = ",".join("?" * len(ENDED))
        return self._read(f"SELECT id, role, phase FROM migrations WHERE phase NOT IN ({marks})", *ENDED)

    def readable(self) -> bool:
        return bool(self._read("SELECT 1"))

    def _read(self, query: str, *values: object) -> list[Any]:
        with contextlib.suppress(sqlite3.Error, OSError, LabError):
            return self._open().execute(query, values).fetchall()
        self.close()
        return []

    def _open(self) -> sqlite3.Connection:
        path = self._host.node.place / FILE
        found = path.stat()
        if self._db is None or (found.st_dev, found.st_ino) != self._file:
            self.close()
            self._file = found.st_dev, found.st_ino
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
        return self._db
