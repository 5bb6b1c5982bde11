"""Figures for Prometheus: what has happened on this host since the agent's start, and how it is at the moment.

Imported only where they are wanted: the library costs memory that an agent without them does not have to spend. A move
is counted where it leaves from, so that the sum over all hosts counts each one once. docs/metrics.md has the list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from agent import __version__
from agent.doors.http_server import Page
from agent.migration import choosing
from agent.migration.machine import ENDS, Role
from agent.migration.report import rehearsed
from agent.migration.run import Run
from protocol.status import Phase

BLACKOUT_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Narrow where a TCP peer's retransmissions are (0.2, 0.6, 1.4 s); the last is deadlines.dump."""
PHASE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
MOVE_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
JOURNAL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
RESULTS = ("done", "refused", "rolled-back", "lost", "rehearsed")


@dataclass(frozen=True, slots=True)
class Looks:
    """What is asked of the other rooms when somebody asks for the figures."""

    running: Callable[[], Mapping[str, int]]
    """Open migrations by this host's role."""
    in_doubt: Callable[[], Mapping[str, int]]
    """Those of them that wait for another host's word, or a person's."""
    containers: Callable[[], Mapping[str, int]]
    """By Docker's word for their state."""
    docker: Callable[[], bool]
    broker: Callable[[], bool]
    dropped: Callable[[], int]
    received: Callable[[], int]


@dataclass(slots=True)
class _Seen:
    """What of a run is counted already."""

    phases: int = 1
    sent: int = 0
    blackout: bool = False
    ended: bool = False


class _Now(Collector):
    """Figures that are looked up when they are asked for."""

    def __init__(self, looks: Looks) -> None:
        self._looks = looks

    def collect(self) -> list[Metric]:
        looks = self._looks
        return [
            _gauge("transship_migrations_running", "Open migrations", "role", looks.running()),
            _gauge("transship_migrations_in_doubt", "Wait for another's word", "role", looks.in_doubt()),
            _gauge("transship_containers", "Containers on this host", "state", looks.containers()),
            GaugeMetricFamily("transship_docker_connected", "Whether dockerd answers", value=looks.docker()),
            GaugeMetricFamily("transship_broker_connected", "Whether the broker is connected", value=looks.broker()),
            CounterMetricFamily("transship_broker_dropped", "Events and replies lost", value=looks.dropped()),
            CounterMetricFamily("transship_received_bytes", "From peers", value=looks.received()),
        ]


class Metrics:
    """See the module."""

    def __init__(self, host: str, limit: int, looks: Looks) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self._seen: WeakKeyDictionary[Run, _Seen] = WeakKeyDictionary()
        self._moves = Counter("transship_migrations", "Moves that have ended", ["result", "strategy"], registry=to)
        self._blackout = Histogram(
            "transship_blackout_seconds", "From freeze to run", ["strategy"], buckets=BLACKOUT_SECONDS, registry=to
        )
        self._phase = Histogram(
            "transship_migration_phase_seconds", "Time in a phase", ["phase"], buckets=PHASE_SECONDS, registry=to
        )
        self._whole = Histogram(
            "transship_migration_seconds", "Of moves that are done", ["strategy"], buckets=MOVE_SECONDS, registry=to
        )
        self._sent = Counter("transship_sent_bytes", "To peers, by moves", registry=to)
        self._write = Histogram(
            "transship_journal_write_seconds", "Until it is on the disk", buckets=JOURNAL_SECONDS, registry=to
        )
        self._unwritten = Counter("transship_journal_write_failures", "Writes that failed", registry=to)
        Gauge("transship_migrations_limit", "limits.migrations", registry=to).set(limit)
        about = Gauge("transship_agent_info", "Always 1", ["host", "version"], registry=to)
        about.labels(host, __version__).set(1)
        for result, strategy in product(RESULTS, choosing.strategies):
            self._moves.labels(result, strategy)  # there from the start, so that a first failure is an increase
        to.register(_Now(looks))
        ProcessCollector(registry=to)

    def page(self) -> Page:
        """All of it, in Prometheus' text format."""
        return Page(generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4)

    def journal_written(self, seconds: float | None) -> None:
        """None: it could not be written."""
        if seconds is None:
            self._unwritten.inc()
        else:
            self._write.observe(seconds)

    def changed(self, run: Run) -> None:
        """A move that leaves this host has come further; said at each step, and may be said twice."""
        seen = self._seen.setdefault(run, _Seen())
        # for a moment it is less than before: a chunk is compressed a little before it counts as sent
        self._sent.inc(max(0, run.wire_bytes - seen.sent))
        seen.sent = max(seen.sent, run.wire_bytes)
        while seen.phases < len(run.phases):
            left, entered = run.phases[seen.phases - 1 : seen.phases + 1]
            self._phase.labels(left.phase).observe((entered.at_ms - left.at_ms) / 1000)
            seen.phases += 1
        strategy = run.strategy or str(run.record.get("strategy") or "none")
        if not seen.blackout and "blackout_ms" in run.figures:
            seen.blackout = True
            self._blackout.labels(strategy).observe(run.figures["blackout_ms"] / 1000)
        if not seen.ended and run.phase in ENDS[Role.SOURCE]:
            seen.ended = True
            self._moves.labels(_result(run), strategy).inc()
            if run.phase is Phase.DONE:
                self._whole.labels(strategy).observe(run.elapsed_ms() / 1000)


def _result(run: Run) -> str:
    if run.phase is Phase.ROLLED_BACK and run.failure is None and rehearsed(run):
        return "rehearsed"
    return "lost" if run.phase is Phase.DONE and run.failure is not None else str(run.phase)


def _gauge(name: str, help_: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
