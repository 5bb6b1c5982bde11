"""How soon an agent that was started again has taken up what its journal has open, by its own log."""

import contextlib
import json
import math
import re
from datetime import datetime

from lab.chaos.ground import Ground
from lab.host import Host
from lab.shell import PATIENCE

_TAKEN = re.compile(r"was \S+ as (source|target) when the agent ended")
_UP = re.compile(r"agent of \S+ is up")
LONGEST_SECONDS = 60.0 * PATIENCE


def recoveries(ground: Ground) -> list[dict[str, float]]:
    """Of each start since the list of them was emptied: seconds from there until it was up, and from up to taken up."""
    found = []
    for name in {host for host, _ in ground.starts}:
        host = ground[name]
        starts = [at for where, at in ground.starts if where == name]
        if host.node.running():
            found += _of(host, starts)
    return found


def _of(host: Host, starts: list[float]) -> list[dict[str, float]]:
    return spans(host.node.log_tail("transship-agent", 4000).splitlines(), starts)


def spans(lines: list[str], starts: list[float]) -> list[dict[str, float]]:
    """Of the lines of an agent's log, one JSON object each."""
    events = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # what something else has printed
            said = json.loads(line)
            for kind, pattern in (("taken", _TAKEN), ("up", _UP)):
                if pattern.search(said["message"]):
                    events.append((kind, datetime.fromisoformat(said["at"]).timestamp()))
    found = []
    for began, following in zip(starts, [*starts[1:], math.inf], strict=True):
        until = min(following, began + LONGEST_SECONDS)
        up = next((when for kind, when in events if kind == "up" and began <= when < until), None)
        if up is None:
            continue
        taken = [when for kind, when in events if kind == "taken" and began <= when < until]
        last = max(taken, default=up) - up
        found.append({"up": round(up - began, 3), "open": len(taken), "taken": round(last, 3)})
    return found
