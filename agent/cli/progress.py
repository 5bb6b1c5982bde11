"""A migration while it goes on: live on a terminal, a line a change elsewhere, JSON lines for a program."""

import time
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agent.cli import timeline
from agent.cli.output import Out, duration, size
from protocol.status import ENDED, MigrationReport, MigrationStatus, Phase

STORY = (
    Phase.PLANNED,
    Phase.RESERVED,
    Phase.COPYING,
    Phase.FROZEN,
    Phase.PREPARED,
    Phase.COMMITTED,
    Phase.RUNNING,
)
MEANING = {
    Phase.PLANNED: "looking at both hosts, nothing touched yet",
    Phase.RESERVED: "the target keeps room",
    Phase.COPYING: "image and files go over while the container runs",
    Phase.FROZEN: "its memory goes over",
    Phase.PREPARED: "restored there, not yet running",
    Phase.COMMITTED: "decided: it will run there, and only there",
    Phase.RUNNING: "it runs there; tidying up here",
}


SHOWN_ROUNDS = 5
"""Of pre-copy, while they go on; the report has all."""


class View(Protocol):
    """What is shown of one move."""

    def begun(self, container: str, source: str, target: str) -> None: ...
    def accepted(self, migration: str) -> None: ...
    def changed(self, status: MigrationStatus) -> None: ...
    def ended(self, report: MigrationReport | None, *, moved: bool) -> None: ...
    def close(self) -> None: ...


def view(out: Out) -> View:
    if out.as_json:
        return JsonView(out)
    return LiveView(out) if out.console.is_terminal else LineView(out)


class JsonView:
    """Each step as an object with a `type`; the last one, `result`, is written by the story."""

    def __init__(self, out: Out) -> None:
        self._out = out

    def begun(self, container: str, source: str, target: str) -> None:
        pass

    def accepted(self, migration: str) -> None:
        self._out.item({"type": "accepted", "migration": migration})

    def changed(self, status: MigrationStatus) -> None:
        self._out.item(status, type="status")

    def ended(self, report: MigrationReport | None, *, moved: bool) -> None:
        pass

    def close(self) -> None:
        pass


class LineView:
    """For a log file: a line a phase."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._route = ""
        self._phase: Phase | None = None
        self._rounds = 0

    def begun(self, container: str, source: str, target: str) -> None:
        self._route = f"{container}: {source} -> {target}"
        self._out.say(self._route)

    def accepted(self, migration: str) -> None:
        self._out.say(f"accepted as {migration}")

    def changed(self, status: MigrationStatus) -> None:
        for one in status.rounds[self._rounds :]:
            self._out.say(f"            {timeline.of_round(one)}")
        self._rounds = len(status.rounds)
        if status.phase is self._phase:
            return
        self._phase = status.phase
        seconds = (status.at - status.started_at).total_seconds()
        sent = f", {size(status.bytes_sent)} sent" if status.bytes_sent else ""
        meaning = f": {MEANING[status.phase]}" if status.phase in MEANING else ""
        self._out.say(f"{seconds:8.3f} s  {status.phase}{meaning}{sent}")

    def ended(self, report: MigrationReport | None, *, moved: bool) -> None:
        if moved:
            self._out.say(f"{self._route}: done")
        for line in timeline.plain(report) if report else ():
            self._out.say(line)

    def close(self) -> None:
        pass


class LiveView:
    """For a person: all phases at once, the clock running."""

    def __init__(self, out: Out) -> None:
        self._console = out.console
        self._title = Text()
        self._entered: dict[Phase, float] = {}
        self._status: MigrationStatus | None = None
        self._offset = 0.0
        """The local clock at the beginning of the migration, as far as the first status tells."""
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=12, transient=True)

    def begun(self, container: str, source: str, target: str) -> None:
        self._title = Text.assemble((container, "bold"), "  ", (source, "cyan"), " ━━▶ ", (target, "cyan"))
        self._live.start()

    def accepted(self, migration: str) -> None:
        self._title.append(f"   {migration}", style="dim")

    def changed(self, status: MigrationStatus) -> None:
        at_ms = (status.at - status.started_at).total_seconds() * 1000
        if self._status is None:
            self._offset = time.monotonic() * 1000 - at_ms
        self._entered.setdefault(status.phase, at_ms)
        self._status = status

    def ended(self, report: MigrationReport | None, *, moved: bool) -> None:
        self._live.stop()
        mark = Text("✔ ", style="bold green") if moved else Text("✘ ", style="bold red")
        self._console.print(mark + self._title)
        if report is not None and len(report.phases) > 1:
            self._console.print(timeline.picture(report, self._console.width))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        table = Table(box=None, show_header=False, pad_edge=False)
        for justify in ("left", "left", "right", "left"):
            table.add_column(justify=justify, no_wrap=True)
        now = self._status.phase if self._status else None
        for phase in STORY:
            table.add_row(*self._row(phase, now))
        lines: list[RenderableType] = [self._title, Text(), table]
        if self._status is not None and now not in ENDED:
            lines += [Text(), _transfer(self._status)]
            lines += [Text(timeline.of_round(one), style="dim") for one in self._status.rounds[-SHOWN_ROUNDS:]]
        return Group(*lines)

    def _row(self, phase: Phase, now: Phase | None) -> tuple[RenderableType, ...]:
        entered = self._entered.get(phase)
        style = "red" if phase in timeline.FROZEN else "green"
        if phase is now and entered is not None:
            elapsed = time.monotonic() * 1000 - self._offset - entered
            return self._spinner, Text(phase, style=f"bold {style}"), duration(max(0, elapsed)), Text(MEANING[phase])
        if entered is None:
            return Text(" "), Text(phase, style="dim"), "", ""
        later = [at for other, at in self._entered.items() if at >= entered and other is not phase]
        return Text("✔", style=style), Text(phase, style=style), duration(min(later, default=entered) - entered), ""


def _transfer(status: MigrationStatus) -> RenderableType:
    """What is being sent: bytes, rate, estimate."""
    if not status.bytes_sent and status.bytes_total is None:
        return Text()
    said = sent(status)
    if status.part:
        said.append(f"   {called(status.part)}", style="dim")
    grid = Table.grid(padding=(0, 2))
    if status.bytes_total:
        grid.add_row(ProgressBar(status.bytes_total, min(status.bytes_sent, status.bytes_total), width=40), said)
    else:
        grid.add_row(said)
    return grid


def sent(status: MigrationStatus) -> Text:
    """How much of how much, how fast, how much longer."""
    said = Text(size(status.bytes_sent))
    if status.bytes_total:
        said.append(f" of {size(status.bytes_total)}")
    if status.rate:
        said.append(f"   {size(status.rate)}/s", style="cyan")
    if status.eta_s is not None and status.eta_s >= 1:
        said.append(f"   {status.eta_s:.0f} s left", style="dim")
    return said


def called(part: str) -> str:
    """What is being sent, in a person's words; `root:0` is a first pass over the writable layer."""
    kind, _, rest = part.partition(":")
    name = rest.rpartition(":")[0]
    words = {
        "root": "writable layer",
        "volume": f"volume {name}",
        "bind": "bind mount",
        "layers": "image",
        "images": "memory",
        "pages": "memory",
        "printed": "last lines of its log",
    }
    return words.get(kind, part)
