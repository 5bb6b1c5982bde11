"""How results and errors are shown: to a person with rich, to a program as one JSON object a line. And exit codes."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Final

from protocol.base import WireModel
from protocol.errors import Consequence, ErrorCode, ErrorInfo

if TYPE_CHECKING:
    from rich.console import Console

OK: Final = 0
FAILED: Final = 1  # begun and taken back; the container runs on
REFUSED: Final = 2  # nothing was touched; also wrong usage
IN_DOUBT: Final = 3  # in doubt, stranded, or unknown: look after it
NO_BROKER: Final = 4
INTERRUPTED: Final = 130

DETAIL_LINES: Final = 12
PIPE_WIDTH: Final = 250
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def exit_code(error: ErrorInfo) -> int:
    """What an error means for a script."""
    if error.code is ErrorCode.BROKER_UNAVAILABLE:
        return NO_BROKER
    match error.consequence:
        case Consequence.UNTOUCHED:
            return REFUSED
        case Consequence.TAKEN_BACK:
            return FAILED
        case Consequence.IN_DOUBT | Consequence.STRANDED:
            return IN_DOUBT


def size(count: float) -> str:
    """Bytes as a person reads them."""
    if count < _STEP:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= _STEP
        if count < _STEP or unit == _UNITS[-1]:
            break
    return f"{count:.{0 if count >= 100 else 1}f} {unit}"


def duration(ms: float | None) -> str:
    """A span of time with the digits that matter."""
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.2f} s" if ms < 100_000 else f"{ms / 1000:.0f} s"


def _width(stream: IO[str]) -> int | None:
    """None: as wide as the terminal. What goes into a pipe is not folded, as far as that can be helped."""
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


class Out:
    """Where a command writes to: everything for a program goes to stdout, one object a line."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.when_interrupted: Callable[[], Mapping[str, str]] | None = None
        """What Ctrl-C leaves behind, as a sentence and data; asked when it comes."""
        self.moving = False
        """Whether a container is at stake, so that an error has to say what became of it."""

    @cached_property
    def console(self) -> "Console":
        from rich.console import Console

        return Console(highlight=False, width=_width(sys.stdout))

    @cached_property
    def errors(self) -> "Console":
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def item(self, thing: WireModel | Mapping[str, Any], **extra: object) -> None:
        """One object for a program."""
        content = thing.model_dump(mode="json") if isinstance(thing, WireModel) else dict(thing)
        sys.stdout.write(json.dumps({**extra, **content}) + "\n")
        sys.stdout.flush()

    def say(self, text: str, style: str = "") -> None:
        """A line for a person; a program does not get it."""
        if not self.as_json:
            self.console.print(text, style=style or None, markup=False)

    def warn(self, text: str) -> None:
        if not self.as_json:
            self.errors.print(text, style="yellow", markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
        """Rows for a person; cells are text, or anything that rich shows."""
        from rich.table import Table

        if not rows:
            self.say(empty, "dim")
            return
        table = Table(box=None, pad_edge=False, header_style="bold dim")
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column in {"ID", "HOST"})
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def error(self, error: ErrorInfo) -> int:
        """Show what went wrong; returns the exit code that goes with it."""
        code = exit_code(error)
        if self.as_json:
            self.item({"ok": False, "exit_code": code, "error": error.model_dump(mode="json")})
            return code
        console = self.errors
        console.print("[bold red]✘[/] ", end="")
        console.print(error.message, style="bold", markup=False)
        if error.reasons and not (len(error.reasons) == 1 and error.reasons[0].message in error.message):
            for reason in error.reasons:
                console.print(f"  • {reason.message}", markup=False)
                if reason.hint:
                    console.print(f"    {reason.hint}", style="dim", markup=False)
        for line in error.detail[-DETAIL_LINES:]:
            console.print(f"  {line}", style="dim", markup=False)
        if self.moving or error.consequence in (Consequence.IN_DOUBT, Consequence.STRANDED):
            console.print(f"  {_MEANING[error.consequence]}", style=_STYLES[error.consequence], markup=False)
        if error.hint:
            console.print("  hint: ", style="cyan", end="")
            console.print(error.hint, markup=False)
        return code

    def interrupted(self) -> int:
        left = self.when_interrupted() if self.when_interrupted else {}
        if self.as_json:
            self.item({"ok": False, "exit_code": INTERRUPTED, "interrupted": True, **left})
        elif "message" in left:
            self.errors.print(f"\n{left['message']}", markup=False)
        return INTERRUPTED


_MEANING: Final = {
    Consequence.UNTOUCHED: "nothing was touched",
    Consequence.TAKEN_BACK: "taken back: the container runs on where it was",
    Consequence.IN_DOUBT: "the outcome is not known yet",
    Consequence.STRANDED: "a person has to look after it",
}
_STYLES: Final = {
    Consequence.UNTOUCHED: "dim",
    Consequence.TAKEN_BACK: "green",
    Consequence.IN_DOUBT: "yellow",
    Consequence.STRANDED: "bold red",
}
