"""What is written down: one line of JSON a measurement, and what the page is made of."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Move(_Record):
    """One move of one container; what could not be measured is None, and `error` says why."""

    kind: Literal["move"] = "move"
    system: str
    engine: str
    variant: str = ""
    workload: Literal["memory", "redis"] = "memory"
    size_mib: int
    run: int = Field(ge=0)
    """From 1; 0 is the warm-up, which counts nowhere."""
    blackout_ms: float | None = None
    """The widest gap of the ticker in the container."""
    stall_ms: float | None = None
    """The sum of all its gaps over 10 ms, the blackout included."""
    tcp_gap_ms: float | None = None
    connection_kept: bool | None = None
    total_ms: float | None = None
    wire_bytes: int | None = None
    cpu_s: float | None = None
    """Of both machines, beyond what they used just before."""
    agent_cpu_s: float | None = None
    """Of both agents and the commands they ran."""
    peak_rss_mib: float | None = None
    """Of the largest process that moves: agent, daemon or command."""
    report: dict[str, float] = {}
    """What the system itself says, in ms."""
    load: float
    """The outer machine's load average, before."""
    error: str = ""


class Idle(_Record):
    """An agent that has nothing to do, over a while."""

    kind: Literal["idle"] = "idle"
    host: str
    engine: str
    seconds: float
    rss_mib: float
    anonymous_mib: float
    """Without what it shares with its files: programs and libraries."""
    cpu_percent: float
    load: float


class Start(_Record):
    """`docker run --rm busybox true`, once with each runtime."""

    kind: Literal["start"] = "start"
    engine: str
    run: int
    runc_ms: float
    transship_ms: float
    load: float


class About(_Record):
    """The machine, at the beginning of a run."""

    kind: Literal["about"] = "about"
    at: str
    kernel: str
    cpus: int
    memory_mib: int
    versions: dict[str, str] = {}


Record = Move | Idle | Start | About
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def append(file: Path, record: Record) -> None:
    """Write at once: a run that is broken off has lost nothing."""
    with file.open("a") as lines:
        lines.write(record.model_dump_json() + "\n")


def read(file: Path) -> list[Record]:
    return [_RECORD.validate_json(line) for line in file.read_text().splitlines() if line]


def moves(records: Iterable[Record]) -> list[Move]:
    return [record for record in records if isinstance(record, Move)]
