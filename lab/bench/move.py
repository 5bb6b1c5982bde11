"""One measurement: a fresh container, a client that asks it, one move, and what was seen from outside."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from lab.bench import meters
from lab.bench.meters import Usage
from lab.bench.processes import Client
from lab.bench.record import Move
from lab.bench.systems.base import PLACE, REDIS_PORT, TICKER_PORT, Load, System, Unable
from lab.lab import Lab
from lab.shell import CommandFailed, LabError

_FILL_SECONDS = 120.0
_TELL_SECONDS = 150.0
_SETTLE_SECONDS = 1.0
"""Before the move, for the rate of what runs anyway; and after it, for what a container does late."""


@dataclass(frozen=True, slots=True)
class Seen:
    """By the clients, since the mark."""

    gap_ms: float
    broken: int
    widest_ms: float
    long_ms: float


class Clients:
    """Those that ask the container: the ticker's, and redis's own where it is redis."""

    def __init__(self, lab: Lab, load: Load, stack: contextlib.ExitStack) -> None:
        self._ticker = stack.enter_context(Client(lab, "ticker", PLACE.v4, TICKER_PORT))
        self._redis: Client | None = None
        self._ticker.ask("tell", _FILL_SECONDS)
        if load.redis:
            self._redis = stack.enter_context(Client(lab, "redis", PLACE.v4, REDIS_PORT))
            self._redis.ask(f"fill {load.size_mib}", _FILL_SECONDS)

    def mark(self) -> None:
        for client in filter(None, (self._redis, self._ticker)):
            client.ask("mark", _TELL_SECONDS)

    def tell(self) -> Seen:
        ticker: dict[str, Any] = self._ticker.ask("tell", _TELL_SECONDS)
        asked = ticker if self._redis is None else self._redis.ask("tell", _TELL_SECONDS)
        return Seen(asked["gap_ms"], asked["broken"], ticker["widest_ms"], ticker["long_ms"])


def measure(lab: Lab, system: System, load: Load, run: int) -> Move:
    """Measure one move.

    Raises:
        Unable: the system can't do it here at all.

    """
    record = unmeasured(system, load, run)
    _forget_addresses(lab)
    try:
        return record.model_copy(update=_measure(lab, system, load))
    except Unable:
        raise
    except LabError as error:
        return record.model_copy(update={"error": _brief(error)})
    finally:
        system.clean()


def unmeasured(system: System, load: Load, run: int, error: str = "") -> Move:
    """Say which move it is or was to be, with none of its figures."""
    return Move(
        system=system.name,
        engine=system.engine,
        variant=system.variant,
        workload="redis" if load.redis else "memory",
        size_mib=load.size_mib,
        run=run,
        load=meters.load(),
        error=error,
    )


def _measure(lab: Lab, system: System, load: Load) -> dict[str, Any]:
    system.start(load)
    with contextlib.ExitStack() as stack:
        clients = Clients(lab, load, stack)
        system.prepare()
        idle = Usage.of(system.source, system.target)
        time.sleep(_SETTLE_SECONDS)
        agents = system.agent_seconds()
        clients.mark()
        before = Usage.of(system.source, system.target)
        total = system.move()
        after = Usage.of(system.source, system.target)
        time.sleep(_SETTLE_SECONDS)
        seen = clients.tell()
        agents_after = system.agent_seconds()
    # What runs anyway: the container, the daemons at rest, the client's requests.
    anyway = before.cpu_rate(idle) * (after.at - before.at)
    return {
        "blackout_ms": round(seen.widest_ms, 1),
        "stall_ms": round(seen.long_ms, 1),
        "tcp_gap_ms": round(seen.gap_ms, 1),
        "connection_kept": seen.broken == 0,
        "total_ms": round(total * 1000, 1),
        "wire_bytes": after.sent - before.sent,
        "cpu_s": round(max(0.0, after.cpu - before.cpu - anyway), 3),
        "agent_cpu_s": None if agents is None or agents_after is None else round(agents_after - agents, 3),
        "peak_rss_mib": round(system.peak_rss_mib(), 1),
        "report": system.report(),
    }


def _brief(error: LabError) -> str:
    """Without the command line: it holds the whole program of the container."""
    if not isinstance(error, CommandFailed):
        return str(error)
    said = error.output.strip().splitlines() or [""]
    return f"{error.argv[0]} {error.argv[1]}: {error.how}: {said[-1]}"


def _forget_addresses(lab: Lab) -> None:
    """Let switch and client learn anew where the address is: the last container had the same, elsewhere."""
    lab.controller_run(["ip", "link", "set", "br0", "type", "bridge", "fdb_flush"])
    lab.client_run(["ip", "neigh", "flush", "dev", "eth0"])
