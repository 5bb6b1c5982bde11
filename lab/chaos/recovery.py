"""How soon an agent that was started again has taken up what its journal has open, by its own log."""

import re
from datetime import UTC, datetime

from lab.chaos.ground import Ground
from lab.host import Host

_TAKEN = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3}) .* was \S+ as (source|target) when the agent ended")
_UP = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3}) .* agent of \S+ is up")
DAY = 86400.0


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
    events = []
    for line in host.node.log_tail("transship-agent", 4000).splitlines():
        for kind, pattern in (("taken", _TAKEN), ("up", _UP)):
            if match := pattern.match(line):
                events.append((kind, _seconds(match[1])))
    found = []
    for at in starts:
        begun = datetime.fromtimestamp(at, UTC)
        began = begun.hour * 3600 + begun.minute * 60 + begun.second + begun.microsecond / 1e6
        up = next((when for kind, when in events if kind == "up" and 0 <= when - began < 60), None)
        if up is None:
            continue
        taken = [when for kind, when in events if kind == "taken" and 0 <= when - began < 60]
        last = max(taken, default=up) - up
        found.append({"up": round(up - began, 3), "open": len(taken), "taken": round(last, 3)})
    return found


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
