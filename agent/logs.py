"""Log lines: for a person at a terminal or in the journal, or one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime

QUIET = ("aiohttp", "asyncio", "aiodocker", "mqtt")


class JsonLines(logging.Formatter):
    """One object a line: at, level, room, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "room": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(verbose: int, *, as_json: bool) -> None:
    """0: what happened; 1: every outside call too, as it would be typed; 2: their stderr as well."""
    handler = logging.StreamHandler(sys.stderr)
    plain = "%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s"
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(plain, "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("agent").setLevel({0: logging.INFO, 1: logging.DEBUG}.get(verbose, logging.DEBUG - 1))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
