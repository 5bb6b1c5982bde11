"""A host being emptied, while it goes on: a live table on a terminal, a line a change elsewhere, JSON for a program."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agent.cli import timeline
from agent.cli.output import Out, duration, size
from agent.cli.progress import sent
from protocol.evacuation import EvacuationKind, EvacuationStatus, Evacuee, EvacueeState
from protocol.status import ENDED, MigrationStatus

_FIRST = (EvacueeState.MOVING, EvacueeState.LEFT, EvacueeState.WAITING, EvacueeState.MOVED, EvacueeState.STAYS)
"""Where a terminal has too few lines: in this order."""
_OTHER_LINES = 4
_MARKS = {
    EvacueeState.WAITING: ("·", "dim"),
    EvacueeState.MOVED: ("✔", "green"),
    EvacueeState.LEFT: ("✘", "red"),
    EvacueeState.STAYS: ("-", "dim"),
}


class View(Protocol):
    """What is shown; of a return, there may be several hosts."""

    def begun(self, host: str, evacuation: str) -> None: ...
    def changed(self, status: EvacuationStatus) -> None: ...
    def moving(self, status: MigrationStatus) -> None: ...
    def reports(self) -> Mapping[str, MigrationStatus]: ...
    def waits(self, status: EvacuationStatus) -> bool: ...
    def close(self) -> None: ...


def view(out: Out) -> View:
    if out.as_json or not out.console.is_terminal:
        return LineView(out)
    return LiveView(out)


class LineView:
    """For a log file a line, for a program an object, whenever something has become of a container."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._said: dict[str, tuple[str, str | None]] = {}

    def begun(self, host: str, evacuation: str) -> None:
        if self._out.as_json:
            self._out.item({"type": "accepted", "evacuation": evacuation, "host": host})
        self._out.say(f"{host}: accepted as {evacuation}")

    def changed(self, status: EvacuationStatus) -> None:
        for one in status.containers:
            now = (str(one.state), one.migration)
            if one.state is EvacueeState.WAITING or self._said.get(one.container_id) == now:
                continue
            self._said[one.container_id] = now
            if self._out.as_json:
                self._out.item(one, type="container", evacuation=status.id, host=status.host)
            seconds = (status.at - status.started_at).total_seconds()
            self._out.say(f"{seconds:8.3f} s  {one.container}: {_sentence(one)}")

    def moving(self, status: MigrationStatus) -> None:
        pass

    def reports(self) -> Mapping[str, MigrationStatus]:
        return {}

    def waits(self, status: EvacuationStatus) -> bool:
        return False

    def close(self) -> None:
        pass


class LiveView:
    """For a person: every container at once, with what is being sent."""

    def __init__(self, out: Out) -> None:
        self._console = out.console
        self._statuses: dict[str, EvacuationStatus] = {}
        self._moves: dict[str, MigrationStatus] = {}
        """By migration; those that have ended too, with their reports."""
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8, transient=True)

    def begun(self, host: str, evacuation: str) -> None:
        self._live.start()

    def changed(self, status: EvacuationStatus) -> None:
        self._statuses[status.id] = status

    def moving(self, status: MigrationStatus) -> None:
        self._moves[status.id] = status

    def reports(self) -> Mapping[str, MigrationStatus]:
        return {name: one for name, one in self._moves.items() if one.report is not None}

    def waits(self, status: EvacuationStatus) -> bool:
        """Whether the report of a move that is over is still to come."""
        moved = {one.migration for one in status.containers if one.state is EvacueeState.MOVED}
        return not moved <= self.reports().keys()

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        return Group(*(line for status in self._statuses.values() for line in self._of(status)))

    def _of(self, status: EvacuationStatus) -> list[RenderableType]:
        every = status.containers
        done = sum(one.state not in (EvacueeState.WAITING, EvacueeState.MOVING) for one in every)
        title = Text.assemble((status.host, "bold cyan"), "  ", (status.id, "dim"))
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(max(1, len(every)), done, width=40), Text(f"{done} of {len(every)}"))
        table = Table(box=None, show_header=False, pad_edge=False)
        for number in range(5):
            table.add_column(no_wrap=number < 4)
        room = max(1, self._console.height // max(1, len(self._statuses)) - _OTHER_LINES)
        shown = every if len(every) <= room else sorted(every, key=lambda one: _FIRST.index(one.state))[:room]
        for one in shown:
            table.add_row(*self._row(one))
        more = [Text(f"  and {len(every) - len(shown)} more", "dim")] if len(shown) < len(every) else []
        return [title, grid, table, *more]

    def _row(self, one: Evacuee) -> tuple[RenderableType, ...]:
        name, to = Text(one.container, "bold"), Text(f"━━▶ {one.to}" if one.to else "", "cyan")
        if one.state is not EvacueeState.MOVING:
            mark, style = _MARKS[one.state]
            return Text(mark, style), name, to, Text(str(one.state), style), Text(_about(one), "dim")
        move = self._moves.get(one.migration or "")
        if move is None or move.phase in ENDED:
            return self._spinner, name, to, Text("begins" if move is None else "ends", "cyan"), Text()
        style = "bold red" if move.phase in timeline.FROZEN else "cyan"
        grid = Table.grid(padding=(0, 2))
        if move.bytes_total:
            grid.add_row(ProgressBar(move.bytes_total, min(move.bytes_sent, move.bytes_total), width=20), sent(move))
        else:
            grid.add_row(sent(move))
        return self._spinner, name, to, Text(move.phase, style), grid


def _sentence(one: Evacuee) -> str:
    match one.state:
        case EvacueeState.MOVING:
            return f"to {one.to} as {one.migration}: {one.why}"
        case EvacueeState.MOVED:
            return f"is on {one.to}, moved in {duration(one.total_ms)}, blackout {duration(one.blackout_ms)}"
        case EvacueeState.LEFT:
            return f"is left here: {_about(one)}"
        case _:
            return f"{one.state}: {_about(one)}"


def _about(one: Evacuee) -> str:
    if one.state is EvacueeState.MOVED:
        return f"{duration(one.total_ms)}, blackout {duration(one.blackout_ms)}"
    return one.error.message if one.error and one.state is not EvacueeState.WAITING else one.why


def show_plan(out: Out, statuses: Sequence[EvacuationStatus]) -> None:
    """Who would go where and when, and of each why, and why not elsewhere."""
    for status in statuses:
        rows = [
            (
                f"[bold]{one.container}[/]",
                size(one.memory_bytes) if one.memory_bytes else "",
                str(one.priority),
                one.to or f"[{'red' if one.error else 'dim'}]stays[/]",
                f"{one.predicted_s:.0f} s" if one.predicted_s is not None else "",
                escape(_about(one)),
            )
            for one in status.containers
        ]
        columns = ("CONTAINER", "MEMORY", "PRIORITY", "TO", "THERE AFTER", "WHY")
        if not out.as_json:
            out.table(columns, rows, empty=f"nothing is to leave {status.host}")
            _show_reasons(out, status.containers)


def show_result(
    out: Out, statuses: Sequence[EvacuationStatus], reports: Mapping[str, MigrationStatus] | None = None
) -> None:
    """What came of it; of those that stayed, every reason; on a terminal the moves as a picture to scale."""
    for status in statuses:
        moved = [one for one in status.containers if one.state is EvacueeState.MOVED]
        left = [one for one in status.containers if one.state in (EvacueeState.LEFT, EvacueeState.MOVING)]
        stays = [one for one in status.containers if one.state is EvacueeState.STAYS]
        seconds = (status.at - status.started_at).total_seconds()
        if not out.as_json and out.console.is_terminal:
            for one in status.containers:
                mark, style = _MARKS.get(one.state, ("?", "yellow"))
                out.console.print(Text.assemble((f"{mark} ", style), (one.container, "bold"), f"  {_sentence(one)}"))
            known = [(reports or {}).get(one.migration or "") for one in moved]
            out.console.print(timeline.several([one for one in known if one is not None], out.console.width))
        word = "given back" if status.kind is EvacuationKind.RETURN else "moved away"
        by_label = f", {len(stays)} stay by their label" if stays else ""
        out.say(
            f"{status.host}: {status.state} after {duration(seconds * 1000)}: "
            f"{len(moved)} {word}, {len(left)} left behind{by_label}",
            "yellow" if left else "green",
        )
        if status.error is not None:
            out.say(f"{status.host}: {status.error.message}", "red")
        if not out.as_json:
            _show_reasons(out, left)


def _show_reasons(out: Out, containers: Sequence[Evacuee]) -> None:
    for one in containers:
        reasons = one.error.reasons if one.error else ()
        for reason in reasons if len(reasons) > 1 else ():
            out.say(f"  {one.container}: {reason.message}", "dim")
        if one.error and one.error.hint:
            out.say(f"  {one.container}: hint: {one.error.hint}", "dim")
        for no in one.not_there:
            for reason in no.reasons:
                out.say(f"  {one.container} not on {no.host}: {reason.message}", "dim")
        for note in one.notes:
            out.say(f"  {one.container}: {note}", "dim")
