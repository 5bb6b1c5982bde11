"""What a person reads: tables of medians and 95th percentiles, plots, and which goals were reached."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.bench import plot
from lab.bench.figures import Figure, Series, series, unable
from lab.bench.goals import goals, overhead_ms
from lab.bench.record import About, Idle, Move, Record, Start

_GENERATED = "<!-- Made by `./scripts/bench --page FILE`; what is written by hand is in docs/benchmarks/notes.md. -->"
_HOW = """\
`./scripts/bench` makes a lab of real hosts in namespaces of one machine, two for each engine and two with Podman, all
on one switch. A move is measured from outside, with the same container and the same clients for every system:

- **blackout**: the widest gap of a loop in the container that sleeps 1 ms and writes to a page of its memory, by the
  machine's real-time clock. (The monotonic one will not do: CRIU restores into a time namespace in which it goes on
  where it stood.) **stalls**: the sum of all its gaps over 10 ms, during the move and a second after it.
- **TCP gap**: the widest time between two answers to one client, which sends a request every millisecond over one
  connection from another machine of the lab. A star: the connection broke and was made again.
- **total**: from the word to the end of the last command; with post-copy, until the last page is across.
- **wire**: what the source put on its cable. **CPU**: of both machines, beyond what they used before the move.
- **peak**: of the largest single process that does the work: agent; dockerd or containerd; podman or runc and what
  they start, CRIU included.

The memory is incompressible and all of it is resident. Each measurement has a fresh container. The systems take
turns, each once a round and in another order each round, so that noise hits all alike; one move of each goes before,
and does not count. Images are on both hosts of every system. `podman` is `container checkpoint --export`, the file
copied over the lab's network, `container restore --import`; of no compression and zstd the one with the smaller
blackout. `docker` is `docker checkpoint create`, the files copied, `docker start --checkpoint`, with Docker 26 (28
can't). `bare` is the limit of what goes one step after the other: `runc checkpoint` into memory, a plain socket,
`runc restore`, each of them already waiting when its turn comes, with no engine, no image and no files but CRIU's.

Figures are medians, with the 95th percentile in brackets: with fewer than twenty runs, that is the worst.
"""
_PLOTS = (
    ("blackout_ms", "blackout", "The container's own blackout"),
    ("tcp_gap_ms", "tcp-gap", "What a TCP client sees"),
    ("total_ms", "total", "The whole move"),
)
_COLUMNS = ("system", "blackout ms", "stalls ms", "TCP gap ms", "total ms", "wire MiB", "CPU s", "peak MiB", "runs")
_PHASES = ("freeze", "dump", "restore", "blackout", "total")


def tables(records: Iterable[Record]) -> str:
    """Everything in numbers."""
    records = list(records)
    all_series = series(records)
    parts = [_load(all_series, key) for key in dict.fromkeys((one.workload, one.size_mib) for one in all_series)]
    parts += [_own(all_series), _goals(all_series, records), _rest(records), _unable(records)]
    return "\n\n".join(part.strip() for part in parts if part)


def write(document: Path, records: Iterable[Record]) -> None:
    """Write the page, and its plots into a folder beside it."""
    records = list(records)
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    notes = folder / "notes.md"
    parts = ["# Benchmarks", _GENERATED, _HOW, _about(records)]
    parts += [notes.read_text()] if notes.exists() else []
    for field, name, title in _PLOTS:
        drawn = plot.lines(title, "ms", _points(series(records), field))
        if drawn:
            (folder / f"{name}.svg").write_text(drawn)
            parts.append(f"![{title}]({folder.name}/{name}.svg)\n")
    document.write_text("\n".join([*parts, tables(records)]).rstrip() + "\n")


def _points(all_series: Sequence[Series], field: str) -> dict[str, dict[int, Sequence[float]]]:
    named: dict[str, dict[int, Sequence[float]]] = {}
    for one in all_series:
        figure = one.figure(field)
        if figure and one.workload == "memory":
            named.setdefault(_who(one), {})[one.size_mib] = figure.values
    return dict(sorted(named.items()))


def _load(all_series: Sequence[Series], key: tuple[str, int]) -> str:
    workload, size = key
    here = [one for one in all_series if (one.workload, one.size_mib) == key]
    title = f"redis with {size} MiB, under load" if workload == "redis" else f"{size} MiB"
    rows = [_row(one) for one in sorted(here, key=lambda one: one.median("blackout_ms") or float("inf"))]
    errors = [f"- {_who(one)}: {one.failed} failed: {'; '.join(one.errors)}" for one in here if one.failed]
    return "\n".join([f"## {title}\n", _table(_COLUMNS, rows), "", *errors])


def _row(one: Series) -> list[str]:
    kept = all(run.connection_kept for run in one.runs)
    return [
        _who(one) + (f" ({one.variant})" if one.variant else ""),
        _both(one.figure("blackout_ms")),
        _both(one.figure("stall_ms")),
        _both(one.figure("tcp_gap_ms")) + ("" if kept else " *"),
        _both(one.figure("total_ms")),
        _both(one.figure("wire_bytes"), 2**20),
        _both(one.figure("cpu_s"), digits=2),
        _both(one.figure("peak_rss_mib")),
        str(len(one.runs)),
    ]


def _own(all_series: Sequence[Series]) -> str:
    """Where the time goes, by what transship says itself."""
    rows = []
    for one in all_series:
        figures = [one.own(phase) for phase in _PHASES]
        if any(figures):
            size = f"{'redis ' if one.workload == 'redis' else ''}{one.size_mib}"
            seen = one.median("blackout_ms")
            rows.append([_who(one), size, *(_plain(each) for each in figures), "" if seen is None else f"{seen:.0f}"])
    if not rows:
        return ""
    columns = ("system", "MiB", *(f"{phase} ms" for phase in _PHASES), "blackout seen from outside ms")
    return f"## Where the time goes\n\nMedians of what transship's own reports say.\n\n{_table(columns, rows)}\n"


def _goals(all_series: Sequence[Series], records: Sequence[Record]) -> str:
    rows = [
        [
            goal.text,
            f"at {'least' if goal.at_least else 'most'} {goal.limit:g} {goal.unit}".strip(),
            "-" if goal.value is None else f"{goal.value:.3g} {goal.unit}".strip(),
            goal.verdict,
        ]
        for goal in goals(all_series, records)
    ]
    return f"## To reach\n\n{_table(('what', 'goal', 'measured', ''), rows)}\n"


def _rest(records: Sequence[Record]) -> str:
    idle = [record for record in records if isinstance(record, Idle)]
    starts = [record for record in records if isinstance(record, Start)]
    parts = [*([_idle(idle)] if idle else []), *([_starts(starts)] if starts else [])]
    return "\n\n".join(["## At rest", *parts]) if parts else ""


def _idle(idle: Sequence[Idle]) -> str:
    columns = ("agent", "engine", "memory MiB", "without libraries MiB", "of a core %", "watched s")
    rows = []
    for one in idle:
        numbers = (f"{one.rss_mib:.1f}", f"{one.anonymous_mib:.1f}", f"{one.cpu_percent:.3f}", f"{one.seconds:.0f}")
        rows.append([one.host, one.engine, *numbers])
    return f"After the moves, with nothing to do:\n\n{_table(columns, rows)}"


def _starts(starts: Sequence[Start]) -> str:
    columns = ("engine", "runc ms", "transship-runtime ms", "median difference ms", "runs")
    rows = []
    for engine in dict.fromkeys(one.engine for one in starts):
        here = [one for one in starts if one.engine == engine]
        medians = [statistics.median(one.runc_ms for one in here), statistics.median(one.transship_ms for one in here)]
        numbers = [f"{value:.1f}" for value in (*medians, overhead_ms(here, engine) or 0.0)]
        rows.append([engine, *numbers, str(len(here))])
    return f"`docker run --rm --network none busybox true`, with either runtime in turn:\n\n{_table(columns, rows)}"


def _unable(records: Sequence[Record]) -> str:
    found = unable(records)
    return "\n".join(["## Not measured\n", *(f"- {name}: {why}" for name, why in found.items()), ""]) if found else ""


def _about(records: Sequence[Record]) -> str:
    about = [record for record in records if isinstance(record, About)]
    if not about:
        return ""
    one = about[-1]
    versions: dict[str, str] = {}
    for each in about:
        versions |= each.versions
    loads = [record.load for record in records if isinstance(record, Move) and record.run]
    days = ", ".join(dict.fromkeys(each.at[:10] for each in about))
    free = f"{one.memory_mib / 1024:.0f} GiB of memory free"
    lines = [f"Measured {days} on {one.cpus} processors with {free}, kernel {one.kernel}.\n"]
    if loads:
        spread = f"{min(loads):.1f} to {max(loads):.1f}"
        lines.append(f"The load average before a move was {statistics.median(loads):.1f} in the median ({spread}).\n")
    lines += [f"- {name}: {version}" for name, version in sorted(versions.items())]
    return "\n".join(lines) + "\n"


def _who(one: Series) -> str:
    return one.engine if one.engine.startswith(one.system) else f"{one.system}, {one.engine}"


def _both(figure: Figure | None, unit: float = 1, digits: int = 0) -> str:
    return "-" if figure is None else f"{figure.median / unit:.{digits}f} ({figure.p95 / unit:.{digits}f})"


def _plain(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.median:.0f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
