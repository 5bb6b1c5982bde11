"""The outlook of a container in one cell: where it could go, or why not."""

from rich.text import Text

from agent.cli.output import duration
from protocol.check import Outlook, Verdict


def shortly(outlook: Outlook | None) -> Text:
    """The outlook in a column of `ps`: where it could go, or why not."""
    if outlook is None:
        return Text("")
    if outlook.reasons:
        return Text(f"no: {', '.join(outlook.reasons)}", style="red")
    said = Text()
    for name, peer in sorted(outlook.peers.items()):
        said.append(", " if said else "")
        if peer.verdict is Verdict.NO:
            said.append(f"not {name} ({', '.join(peer.reasons)})", style="yellow")
        else:
            said.append(name, style="green").append(f" {duration(min(peer.blackout_ms.values(), default=None))}")
    return said
