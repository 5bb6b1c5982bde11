"""Log lines: for a person at a terminal, or one JSON object a line; each names the migration that it is about."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from agent.base import tracing

QUIET = ("aiohttp", "asyncio", "aiodocker", "mqtt")


class JsonLines(logging.Formatter):
    """One object a line: at, level, room, message; migration and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "room": record.name,
            "message": record.getMessage(),
        }
        if migration := tracing.migration():
            line["migration"] = migration
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """For a person: the migration stands before the message, if that does not name it already."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        migration = tracing.migration()
        if migration and migration not in record.message:
            record.message = f"{migration} {record.message}"
        return super().formatMessage(record)


def wants_json(stream: TextIO, said: bool | None) -> bool:
    """Whether lines go out as JSON: as the settings say, else where no terminal reads them (journald, a file)."""
    return said if said is not None else not stream.isatty()


def set_up_logging(verbose: int, *, as_json: bool | None) -> None:
    """0: what happened; 1: every outside call too, as it would be typed; 2: their stderr as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json(sys.stderr, as_json) else PlainLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("agent").setLevel({0: logging.INFO, 1: logging.DEBUG}.get(verbose, logging.DEBUG - 1))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
