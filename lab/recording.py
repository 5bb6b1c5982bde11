"""The picture of a move in README.md: `./scripts/demo | python -m lab.recording docs/pictures/move.svg`.

It draws what that run has said, up to the container's arrival, as it stood on the terminal; nothing is written into it.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

FIRST, AFTER = "host-a: Docker", "\n3. "
WIDTH = 96


def told(run: str) -> str:
    """The move there, out of all that a demo says."""
    begin, end = run.index(FIRST), run.index(AFTER)
    lines = ["$ ./scripts/demo", *run[begin:end].splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def drawn(text: str) -> str:
    """One SVG, in the fonts of whoever looks at it: nothing in it comes from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    svg = console.export_svg(title="a running container moves from Docker 26 to Docker 28")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn(told(sys.stdin.read())))
