"""`transship top`: hosts, moves and containers as they change, on a terminal; elsewhere the same tables once.

Only watches: what it shows is what agents say by themselves. Cells are `Text`: a container's name is never markup.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Input, Static

from agent.base.errors import AgentError
from agent.cli import listing
from agent.cli.controller import Controller
from agent.cli.output import OK, Out, duration, size
from agent.cli.timeline import FROZEN, bar, stretches
from protocol.status import ENDED, ContainerStatus, HostStatus, MigrationStatus

DRAW_SECONDS = 0.2
BARS = 24
MOVES = 12
COLUMNS = {
    "hosts": ("HOST", "STATE", "DOCKER", "RUNNING", "MOVES", "CPU", "MEMORY IN USE", ""),
    "moves": ("CONTAINER", "FROM", "TO", "PHASE", "SENT", "RATE", "LEFT", "", "BLACKOUT"),
    "containers": ("HOST", "NAME", "IMAGE", "STATE", "MOVE"),
}
Row = tuple[Text | str, ...]


async def top(controller: Controller, out: Out) -> int:
    if not out.console.is_terminal or out.as_json:
        for show in (listing.hosts, listing.migrations):
            await show(controller, out)
        return await listing.ps(controller, out, None)
    app = Top(controller)
    await app.run_async()
    if app.failure is not None:
        raise app.failure
    return OK


class Top(App[None]):
    """Three tables; each is drawn anew from what is known, a few times a second, if that has changed."""

    TITLE = "transship top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    DataTable { height: auto; max-height: 40%; }
    #containers { height: 1fr; max-height: 100%; }
    .title { text-style: bold; padding: 0 1; color: $accent; }
    #filter { display: none; }
    #filter.on { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("slash", "find", "Find"),
        ("escape", "found", "All"),
    ]

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller
        self._hosts: dict[str, HostStatus] = {}
        self._containers: dict[str, ContainerStatus] = {}
        self._moves: dict[str, MigrationStatus] = {}
        self._shown: dict[str, list[Row]] = {}
        self._changed = True
        self._filter = ""
        self.failure: AgentError | None = None

    def compose(self) -> ComposeResult:
        with Vertical():
            for name in COLUMNS:
                yield Static(name.capitalize(), classes="title")
                yield DataTable(id=name, cursor_type="row", zebra_stripes=True)
            yield Input(placeholder="name or image", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        for name, columns in COLUMNS.items():
            self._table(name).add_columns(*columns)
        self.run_worker(self._listen(), name="what hosts say")
        self.set_interval(DRAW_SECONDS, self._draw)

    def _table(self, name: str) -> "DataTable[Text | str]":
        return self.query_one(f"#{name}", DataTable)

    async def _listen(self) -> None:
        try:
            async for topic, said in self._controller.watch():
                self._take(topic, said)
        except AgentError as error:
            self.failure = error
            self.exit()

    def _take(self, topic: str, said: HostStatus | ContainerStatus | MigrationStatus | None) -> None:
        self._changed = True
        match said:
            case HostStatus():
                self._hosts[topic] = said
            case ContainerStatus():
                self._containers[topic] = said
            case MigrationStatus():
                self._moves[topic] = said
            case None if topic:
                for known in (self._hosts, self._containers, self._moves):
                    known.pop(topic, None)
            case None:  # the broker was away: what is retained comes again, and nothing else is so any more
                self._containers.clear()
                self._moves.clear()

    def _draw(self) -> None:
        if not self._changed:
            return
        self._changed = False
        hosts = sorted(self._hosts.values(), key=lambda one: one.host)
        moves = sorted(self._moves.values(), key=lambda one: one.started_at, reverse=True)
        containers = sorted(self._containers.values(), key=lambda one: (one.host, one.name))
        found = [one for one in containers if self._filter in one.name.lower() or self._filter in one.image.lower()]
        going = {(one.source, one.container_id): one for one in moves if one.phase not in ENDED}
        self._fill("hosts", map(host_row, hosts))
        self._fill("moves", map(move_row, moves[:MOVES]))
        self._fill("containers", (container_row(one, going.get((one.host, one.id))) for one in found))

    def _fill(self, name: str, rows: Iterable[Row]) -> None:
        """Only what differs is written: the cursor and the place stay where the reader has them."""
        table, before, now = self._table(name), self._shown.get(name, []), list(rows)
        self._shown[name] = now
        if len(before) != len(now):
            table.clear()
            for row in now:
                table.add_row(*row)
            return
        for at, (old, new) in enumerate(zip(before, now, strict=True)):
            for column, (was, cell) in enumerate(zip(old, new, strict=True)):
                if was != cell:
                    table.update_cell_at((at, column), cell, update_width=True)  # type: ignore[arg-type]

    def action_find(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("on")
        field.focus()

    def action_found(self) -> None:
        field = self.query_one("#filter", Input)
        field.value = ""
        field.remove_class("on")
        self._table("containers").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filter = event.value.strip().lower()
        self._changed = True

    def on_input_submitted(self) -> None:
        self._table("containers").focus()


def host_row(one: HostStatus) -> Row:
    if not one.online:
        return (Text(one.host), Text("offline", style="red"), "", "", "", "", "", "")
    used = one.memory_bytes - one.memory_free_bytes
    return (
        Text(one.host, style="bold"),
        Text("takes nothing", style="yellow") if one.cordoned else Text("online", style="green"),
        Text(one.engine.docker if one.engine else "does not answer"),
        str(one.running),
        str(one.migrations),
        f"{one.cpu_busy * 100:.0f} %" if one.cpu_busy is not None else "",
        f"{size(used)} of {size(one.memory_bytes)}",
        Text(bar(0, used, one.memory_bytes, BARS), style="cyan"),
    )


def move_row(one: MigrationStatus) -> Row:
    ended = one.phase in ENDED
    style = "green" if one.phase == "done" else "red" if ended or one.phase in FROZEN else "cyan"
    sent = size(one.bytes_sent) + (f" of {size(one.bytes_total)}" if one.bytes_total and not ended else "")
    blackout = one.report.blackout_ms if one.report else None
    return (
        Text(one.container, style="bold"),
        Text(one.source),
        Text(one.target),
        Text(one.phase, style=style),
        sent,
        f"{size(one.rate)}/s" if one.rate and not ended else "",
        duration(one.eta_s * 1000) if one.eta_s and not ended else "",
        picture(one),
        duration(blackout) if blackout is not None else "",
    )


def picture(one: MigrationStatus) -> Text:
    """How far it is; of one that has ended its phases to scale, the blackout in red."""
    if one.report is None:
        all_of_it = one.bytes_total or 0
        done = bar(0, min(one.bytes_sent, all_of_it), all_of_it, BARS) if one.bytes_sent else ""
        return Text(done, style="cyan")
    phases = stretches(one.report)
    total = max((each.at_ms + each.ms for each in phases), default=0.0)
    text = Text()
    for each in phases:
        cells = round((each.at_ms + each.ms) / total * BARS) - len(text) if total else 0
        text.append("█" * max(0, cells), style="red" if each.frozen else "green")
    return text


def container_row(one: ContainerStatus, move: MigrationStatus | None) -> Row:
    state = one.state + (f" ({one.health})" if one.health else "")
    style = {"running": "green", "paused": "yellow", "dead": "red"}.get(one.state, "dim")
    going = f"to {move.target}: {move.phase}" if move else ""
    cells: Sequence[Text] = (Text(one.name, style="bold"), Text(one.image), Text(state, style=style), Text(going))
    return (Text(one.host), *cells)
