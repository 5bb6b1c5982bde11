"""Medians and 95th percentiles of what was written down. No text is made here."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.bench.record import Move, Record, moves

FIELDS = ("blackout_ms", "stall_ms", "tcp_gap_ms", "total_ms", "wire_bytes", "cpu_s", "agent_cpu_s", "peak_rss_mib")


@dataclass(frozen=True, slots=True)
class Figure:
    """Many runs of one number."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """By nearest rank: with fewer than twenty runs this is the largest."""
        return sorted(self.values)[math.ceil(0.95 * len(self.values)) - 1]


@dataclass(frozen=True, slots=True)
class Series:
    """All runs of one system with one load."""

    system: str
    engine: str
    variant: str
    workload: str
    size_mib: int
    runs: tuple[Move, ...]
    """Those that worked."""
    failed: int
    errors: tuple[str, ...]

    def figure(self, field: str) -> Figure | None:
        values = tuple(float(value) for run in self.runs if (value := getattr(run, field)) is not None)
        return Figure(values) if values else None

    def own(self, key: str) -> Figure | None:
        """What the system itself says."""
        values = tuple(run.report[key] for run in self.runs if key in run.report)
        return Figure(values) if values else None

    def median(self, field: str) -> float | None:
        figure = self.figure(field)
        return figure.median if figure else None


def series(records: Iterable[Record]) -> list[Series]:
    """Group the runs, in the order of their first appearance; of a system's variants the faster one stands for it."""
    groups: dict[tuple[str, str, str, str, int], list[Move]] = {}
    for move in moves(records):
        key = (move.system, move.engine, move.variant, move.workload, move.size_mib)
        if move.run:
            groups.setdefault(key, []).append(move)
    found = [
        Series(
            *key,
            runs=tuple(run for run in runs if not run.error),
            failed=sum(1 for run in runs if run.error),
            errors=tuple(sorted({run.error.splitlines()[0] for run in runs if run.error})),
        )
        for key, runs in groups.items()
    ]
    return sorted(_best(found), key=lambda one: (one.workload, one.size_mib))


def _best(found: Sequence[Series]) -> list[Series]:
    best: dict[tuple[str, str, str, int], Series] = {}
    for one in found:
        key = (one.system, one.engine, one.workload, one.size_mib)
        other = best.get(key)
        if other is None or _rank(one) < _rank(other):
            best[key] = one
    return list(best.values())


def _rank(one: Series) -> float:
    median = one.median("blackout_ms")
    return math.inf if median is None else median


def unable(records: Iterable[Record]) -> dict[str, str]:
    """Systems whose first move did not work, and why; those that have worked later are not among them."""
    all_moves = moves(records)
    names = {_name(move): move.error.splitlines()[0] for move in all_moves if move.error and not move.run}
    worked = {_name(move) for move in all_moves if not move.error}
    return {name: error for name, error in names.items() if name not in worked}


def _name(move: Move) -> str:
    return f"{move.system} on {move.engine} {move.variant}".strip()
