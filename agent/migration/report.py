"""From a run to what is said of it: the status on MQTT, and the report at its end."""

from datetime import UTC, datetime

from agent.migration.machine import ENDS, Role
from agent.migration.run import Run
from protocol.errors import ErrorInfo
from protocol.status import MigrationReport, MigrationStatus

MEMORY = ("images", "pages")
"""What the parts that hold memory are called, or begin with."""


def report(run: Run) -> MigrationReport:
    """What is known so far; complete once the run has ended."""
    figure = {name: round(run.figures[name], 3) for name in run.figures if name.endswith("_ms")}
    return MigrationReport(
        phases=tuple(run.phases),
        target_phases=run.target_phases,
        parts=tuple(run.parts),
        blackout_ms=figure.get("blackout_ms"),
        predicted_blackout_ms=figure.get("predicted_ms"),
        held_ms=figure.get("held_ms"),
        rehearsed_ms=figure.get("rehearsed_ms"),
        total_ms=round(run.elapsed_ms(), 3),
        freeze_ms=figure.get("freeze_ms"),
        dump_ms=figure.get("dump_ms"),
        restore_ms=figure.get("restore_ms"),
        network_ms=figure.get("network_ms"),
        pages_ms=figure.get("pages_ms"),
        wire_bytes=run.wire_bytes,
        memory_bytes=_sent(run, memory=True, frozen=False),
        frozen_memory_bytes=_sent(run, memory=True, frozen=True),
        file_bytes=_sent(run, memory=False, frozen=False),
        frozen_file_bytes=_sent(run, memory=False, frozen=True),
        rounds=tuple(run.rounds),
        compression=run.compression.reason,
        cpu_s=round(run.cpu_seconds(), 3),
        target_cpu_s=round(run.figures.get("target_cpu_s", 0), 3),
        strategy=run.strategy,
        reason=run.reason,
        tcp=str(run.record.get("offer", {}).get("tcp", "")),
        notes=tuple(run.notes),
    )


def rehearsed(run: Run) -> bool:
    """Whether it is a rehearsal."""
    return bool(run.record.get("request", {}).get("rehearse"))


def _sent(run: Run, *, memory: bool, frozen: bool) -> int:
    """Bytes of the parts of a kind."""
    parts = (part for part in run.parts if part.frozen == frozen)
    return sum(part.bytes for part in parts if part.name.startswith(MEMORY) == memory)


def status(run: Run, source: str, sequence: int, error: ErrorInfo | None = None) -> MigrationStatus:
    """The retained status of a migration, as its source says it."""
    ended = run.phase in ENDS[Role.SOURCE] or error is not None
    left = run.bytes_total - run.bytes_sent if run.bytes_total is not None else None
    rate = run.rate()
    return MigrationStatus(
        id=run.id,
        container=run.container,
        container_id=run.record["container_id"],
        source=source,
        target=run.peer,
        phase=run.phase,
        sequence=sequence,
        started_at=run.started,
        at=datetime.now(UTC),
        rehearsal=rehearsed(run),
        strategy=run.strategy,
        part="" if ended else run.part,
        rounds=tuple(run.rounds),
        bytes_sent=run.bytes_sent,
        bytes_total=run.bytes_total,
        rate=round(rate, 1),
        bandwidth=run.bandwidth.rate,
        eta_s=round(left / rate, 3) if left is not None and left > 0 and rate else None,
        error=error,
        report=report(run) if ended else None,
    )
