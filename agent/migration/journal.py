"""The journal: what must survive a crash of the agent or of the host. One row a migration and role, in SQLite.

WAL with synchronous=FULL is one fsync a transaction; the call returns after it, but for what may be on the disk with
the next (the WAL is written in order). SQLite blocks, so every call runs in one thread of its own: in order, and the
event loop goes on meanwhile.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from agent.base.errors import Refused
from agent.migration.machine import ENDS, Role
from protocol.errors import ErrorCode
from protocol.status import Phase

log = logging.getLogger("agent.journal")

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS migrations (
    id TEXT NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL, container TEXT NOT NULL, peer TEXT NOT NULL,
    started TEXT NOT NULL, entered TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (id, role));
CREATE TABLE IF NOT EXISTS history (
    id TEXT NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS commands (
    id TEXT PRIMARY KEY, at TEXT NOT NULL, migration TEXT, reply TEXT, digest TEXT);
CREATE INDEX IF NOT EXISTS history_id ON history (id);
"""
KEEP_ENDED = 1000
"""Ended migrations and answered commands kept: enough to answer a late question or a replayed command.

Beside these, every one that a person has resolved: nobody knows whether its target has ever heard of it.
"""
ENDED = sorted(frozenset().union(*ENDS.values()))
"""No role's end is a phase in the middle of the other."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One migration as the journal has it."""

    id: str
    role: Role
    phase: Phase
    container: str
    peer: str
    started: str
    entered: str
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """A command that came before."""

    migration: str | None
    """That it began."""
    reply: str | None
    """Its last one, as JSON."""
    digest: str | None
    """Of what it said; None in the record of an older agent."""


def _now() -> str:
    return datetime.now(UTC).isoformat()


class Journal:
    """All methods are safe to repeat; `put` returns when the row is on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._db: sqlite3.Connection | None = None
        self.on_write: Callable[[float | None], None] = lambda seconds: None
        """Told how long each transition took until it was on the disk; None: it could not be written."""

    async def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._call(self._open)

    def _open(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(SCHEMA)
        if "digest" not in [row[1] for row in db.execute("PRAGMA table_info(commands)")]:  # of an agent before this one
            db.execute("ALTER TABLE commands ADD COLUMN digest TEXT")
        self._db = db

    async def close(self) -> None:
        await self._call(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _call(self, call: Callable[..., T], *args: Any) -> T:
        # shielded: a cancel must not make it uncertain whether the row was written
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, call, *args))

    @property
    def _open_db(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal is not open"
        return self._db

    async def put(self, entry: Entry, *, with_next: bool = False) -> None:
        """Write the row and its line of history, durably; or `with_next`: that is so when the next is."""
        began = time.monotonic()
        try:
            await self._call(self._put, entry, with_next)
        except Exception:
            self.on_write(None)
            raise
        self.on_write(time.monotonic() - began)

    def _put(self, entry: Entry, with_next: bool) -> None:
        db = self._open_db
        db.execute(f"PRAGMA synchronous={'NORMAL' if with_next else 'FULL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(
                "INSERT INTO migrations VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (id, role) DO UPDATE SET "
                "phase=excluded.phase, entered=excluded.entered, record=excluded.record",
                (
                    entry.id,
                    entry.role,
                    entry.phase,
                    entry.container,
                    entry.peer,
                    entry.started,
                    entry.entered,
                    json.dumps(entry.record),
                ),
            )
            db.execute("INSERT INTO history VALUES (?,?,?,?)", (entry.id, entry.role, entry.phase, _now()))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        finally:
            db.execute("PRAGMA synchronous=FULL")

    async def get(self, migration: str, role: Role) -> Entry | None:
        rows = await self._call(self._select, "WHERE id=? AND role=?", (migration, role))
        return rows[0] if rows else None

    async def unfinished(self) -> list[Entry]:
        """Every migration that has not ended, the oldest first."""
        return await self._call(self._select, f"WHERE phase NOT IN ({','.join('?' * len(ENDED))})", tuple(ENDED))

    def _select(self, where: str, values: tuple[str, ...]) -> list[Entry]:
        rows = self._open_db.execute(
            "SELECT id, role, phase, container, peer, started, entered, record FROM migrations "  # noqa: S608 - `where` is ours
            f"{where} ORDER BY started",
            values,
        )
        return [
            Entry(row[0], Role(row[1]), Phase(row[2]), row[3], row[4], row[5], row[6], json.loads(row[7]))
            for row in rows
        ]

    async def fixed_ms(self, strategy: str, count: int) -> list[float]:
        """Of the last moves of a strategy that left this host, what of their blackouts was not due to their memory."""
        return await self._shown("fixed_ms", count, strategy)

    async def link_rates(self, count: int) -> list[float]:
        """Of the last moves that left this host, how fast their links were: bytes a second, of what they carried."""
        return await self._shown("link_rate", count)

    async def _shown(self, figure: str, count: int, strategy: str | None = None) -> list[float]:
        rows = await self._call(
            lambda: list(
                self._open_db.execute(
                    "SELECT json_extract(record, ?) AS figure FROM migrations WHERE role=? AND figure IS NOT NULL "
                    "AND (? IS NULL OR json_extract(record, '$.strategy')=?) ORDER BY started DESC LIMIT ?",
                    (f"$.{figure}", Role.SOURCE, strategy, strategy, count),
                )
            )
        )
        return [float(row[0]) for row in rows]

    async def history(self, migration: str) -> list[tuple[str, str, str]]:
        """Role, phase and time of every transition, in order."""
        return await self._call(
            lambda: list(
                self._open_db.execute("SELECT role, phase, at FROM history WHERE id=? ORDER BY rowid", (migration,))
            )
        )

    async def begin_command(self, command: str, digest: str) -> "Seen | None":
        """Note that a command is being done; what there is to know of one that was seen before.

        Raises:
            Refused: there is no room for that. It is not done then: it would be done again when it comes twice.

        """
        try:
            return await self._call(self._begin_command, command, digest)
        except sqlite3.OperationalError as error:
            raise Refused(
                ErrorCode.NO_SPACE,
                f"the command can't be noted down: {error}",
                hint="make room in the agent's state_dir",
            ) from None

    def _begin_command(self, command: str, digest: str) -> "Seen | None":
        cursor = self._open_db.execute(
            "INSERT OR IGNORE INTO commands VALUES (?,?,NULL,NULL,?)", (command, _now(), digest)
        )
        return None if cursor.rowcount else self._seen_command(command)

    async def seen_command(self, command: str) -> "Seen | None":
        return await self._call(self._seen_command, command)

    def _seen_command(self, command: str) -> "Seen | None":
        row = self._open_db.execute("SELECT migration, reply, digest FROM commands WHERE id=?", (command,)).fetchone()
        return Seen(*row) if row else None

    async def link_command(self, command: str, migration: str) -> None:
        """Note which migration a command has begun."""
        await self._call(
            lambda: self._open_db.execute("UPDATE commands SET migration=? WHERE id=?", (migration, command))
        )

    async def end_command(self, command: str, reply: str) -> None:
        """Note what was answered. It is answered in any case: one that comes again hears what became of it."""
        try:
            await self._call(lambda: self._open_db.execute("UPDATE commands SET reply=? WHERE id=?", (reply, command)))
        except sqlite3.OperationalError as error:
            log.warning("the answer to command %s can't be noted down: %s", command, error)

    async def prune(self) -> None:
        """Forget the oldest ended migrations and commands beyond `KEEP_ENDED`, but for those that a person resolved."""
        await self._call(self._prune)

    def _prune(self) -> None:
        db = self._open_db
        for role, ends in ENDS.items():
            which = f"role=? AND phase IN ({','.join('?' * len(ends))}) AND json_extract(record, '$.resolved') IS NULL"
            db.execute(
                f"DELETE FROM migrations WHERE {which} AND id NOT IN ("  # noqa: S608 - all of it is ours
                f"SELECT id FROM migrations WHERE {which} ORDER BY entered DESC LIMIT ?)",
                (role, *sorted(ends), role, *sorted(ends), KEEP_ENDED),
            )
        db.execute("DELETE FROM history WHERE id NOT IN (SELECT id FROM migrations)")
        db.execute(
            "DELETE FROM commands WHERE id NOT IN (SELECT id FROM commands ORDER BY at DESC LIMIT ?)", (KEEP_ENDED,)
        )
