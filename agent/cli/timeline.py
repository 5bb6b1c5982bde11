"""The end of a migration as a picture: phases as bars to scale, what was carried, the blackout in large digits."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.cli.output import duration, size
from protocol.status import ENDED, MigrationReport, MigrationStatus, Phase, Round

FROZEN = frozenset({Phase.FROZEN, Phase.RESTORING, Phase.PREPARED, Phase.COMMITTED})
"""Phases of the source in which the container runs nowhere."""

LITTLE = 64 << 10
"""Bytes of files that are not worth a word: a pass that finds nothing has some."""
BAR_WIDTH = 40
COLUMNS_WIDTH = 32
"""What stands beside the bars."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_DIGITS = {
    "0": ("┏━┓", "┃ ┃", "┗━┛"),
    "1": ("━┓ ", " ┃ ", "━┻━"),
    "2": ("━━┓", "┏━┛", "┗━━"),
    "3": ("━━┓", "╺━┫", "━━┛"),
    "4": ("╻ ╻", "┗━┫", "  ╹"),
    "5": ("┏━━", "┗━┓", "━━┛"),
    "6": ("┏━╸", "┣━┓", "┗━┛"),
    "7": ("━━┓", "  ┃", "  ╹"),
    "8": ("┏━┓", "┣━┫", "┗━┛"),
    "9": ("┏━┓", "┗━┫", "╺━┛"),
    ".": (" ", " ", "╹"),
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """One phase, from its start to the next one's."""

    phase: Phase
    at_ms: float
    ms: float

    @property
    def frozen(self) -> bool:
        return self.phase in FROZEN


def stretches(report: MigrationReport) -> list[Stretch]:
    """The phases with their lengths; those that end a migration last no time and are left out."""
    ends = [each.at_ms for each in report.phases[1:]] + [report.total_ms]
    pairs = zip(report.phases, ends, strict=True)
    return [Stretch(one.phase, one.at_ms, max(0.0, end - one.at_ms)) for one, end in pairs if one.phase not in ENDED]


def bar(start: float, length: float, total: float, width: int = BAR_WIDTH) -> str:
    """A bar to scale, to an eighth of a character; what took any time at all is seen."""
    if total <= 0 or width <= 0:
        return ""
    cells = min(start / total * width, width - 1 / 8)
    blank, fill = int(cells), length / total * width
    full, eighth = int(fill), int(fill % 1 * 8)
    if not full and not eighth:
        eighth = 1
    return " " * blank + _EIGHTHS[8] * full + (_EIGHTHS[eighth] if eighth else "")


def digits(text: str) -> Text:
    """Figures three lines high."""
    rows = [" ".join(_DIGITS[character][row] for character in text) for row in range(3)]
    return Text("\n".join(rows))


def picture(report: MigrationReport, width: int) -> RenderableType:
    """All of it, for a terminal of this width."""
    bars = max(0, min(BAR_WIDTH, width - COLUMNS_WIDTH))
    parts: list[RenderableType] = [Padding(_phases(report, bars), (1, 0, 1, 2))]
    if report.blackout_ms is not None:
        parts.append(Padding(_blackout(report.blackout_ms), (0, 0, 1, 2)))
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in _carried(report)]
    parts += [Padding(Text(f"note: {note}", style="yellow"), (0, 0, 0, 2)) for note in report.notes]
    return Group(*parts)


def _phases(report: MigrationReport, bars: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for heading in ("PHASE", "AT", "TOOK", ""):
        table.add_column(heading, justify="right" if heading in {"AT", "TOOK"} else "left", no_wrap=True)
    rows = stretches(report)
    total = max((one.at_ms + one.ms for one in rows), default=0.0)
    for one in rows:
        style = "red" if one.frozen else "green"
        table.add_row(
            Text(one.phase, style=style),
            duration(one.at_ms),
            duration(one.ms),
            Text(bar(one.at_ms, one.ms, total, bars), style=style),
        )
    table.add_row(Text("in all", style="dim"), "", duration(total), "")
    return table


def _blackout(ms: float) -> RenderableType:
    figure, unit = (f"{ms:.0f}", "ms") if ms < 10_000 else (f"{ms / 1000:.1f}", "s")
    table = Table.grid(padding=(0, 2))
    table.add_row(digits(figure), Text(f"\n\n{unit} blackout: frozen here until it ran there"), style="bold")
    return table


def _carried(report: MigrationReport) -> list[str]:
    running = sum(part.bytes for part in report.parts if not part.frozen)
    frozen = sum(part.bytes for part in report.parts if part.frozen)
    spans = {
        "freeze": report.freeze_ms,
        "dump": report.dump_ms,
        "restore": report.restore_ms,
        "network": report.network_ms,
        "last page after": report.pages_ms,
    }
    lines = [f"carried {size(running)} while it ran, {size(frozen)} while it was frozen"] if report.parts else []
    known = [f"{name} {duration(ms)}" for name, ms in spans.items() if ms is not None]
    how = [f"strategy {report.strategy}" + (f" ({report.reason})" if report.reason else "")] if report.strategy else []
    how += [f"CPU {report.cpu_s:.1f} s here, {report.target_cpu_s:.1f} s there"] if report.cpu_s else []
    how += [f"TCP connections: {report.tcp}"] if report.tcp else []
    lines += [", ".join(line) for line in (known, how) if line]
    lines += [of_round(one) for one in report.rounds]
    return lines


def several(moves: Sequence[MigrationStatus], width: int) -> RenderableType:
    """Many moves on one scale of time: when each was under way, and in red when its container stood still."""
    reported = [(one, one.report) for one in sorted(moves, key=lambda one: one.started_at) if one.report is not None]
    if not reported:
        return Text()
    began = reported[0][0].started_at
    offsets = [(one.started_at - began).total_seconds() * 1000 for one, _ in reported]
    whole = max(offset + report.total_ms for offset, (_, report) in zip(offsets, reported, strict=True))
    names = max(len(one.container) for one, _ in reported)
    cells = max(10, min(2 * BAR_WIDTH, width - names - COLUMNS_WIDTH // 2))
    table = Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for offset, (one, report) in zip(offsets, reported, strict=True):
        table.add_row(Text(one.container), _stretched(report, offset, whole, cells), duration(report.blackout_ms))
    scale = Text(f"0{duration(whole):>{cells - 1}}", style="dim")
    table.add_row("", scale, Text("blackout", style="dim"))
    return Padding(table, (1, 0, 1, 2))


def _stretched(report: MigrationReport, offset: float, whole: float, cells: int) -> Text:
    """Its phases as cells on the common scale; a blackout is seen however short it was."""
    text = Text(" " * round(offset / whole * cells))
    for each in stretches(report):
        end = round((offset + each.at_ms + each.ms) / whole * cells)
        length = max(end - len(text), 1 if each.phase is Phase.FROZEN else 0)
        text.append("█" * length, style="red" if each.frozen else "green")
    text.truncate(cells)
    return text


def of_round(one: Round) -> str:
    """One round of pre-copy, in a line."""
    slowed = f", slowed down by {one.throttled} %" if one.throttled else ""
    files = f" and {size(one.file_bytes)} of files" if one.file_bytes > LITTLE else ""
    return (
        f"round {one.number}: {size(one.bytes)}{files} in {duration(one.ms)}{slowed}, held for "
        f"{duration(one.frozen_ms)}; {size(one.left_bytes)} left, blackout of {duration(one.predicted_ms)} predicted"
    )


def plain(report: MigrationReport) -> Sequence[str]:
    """The same for a log file."""
    spans = ", ".join(f"{one.phase} {duration(one.ms)}" for one in stretches(report))
    lines = [f"phases: {spans}"] if spans else []
    if report.blackout_ms is not None:
        lines.append(f"blackout: {duration(report.blackout_ms)}")
    return [*lines, *_carried(report), *(f"note: {note}" for note in report.notes)]
