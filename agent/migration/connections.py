"""What becomes of a container's TCP connections: said by the command, by a label, or by where its address is.

Pure. A label speaks for every move, a command for one: a command that says more than `auto` is stronger.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from agent.base.errors import Refused
from protocol.commands import TcpPolicy
from protocol.errors import Why
from protocol.reasons import against

LABEL: Final = "transship.tcp"


class Labelled(Protocol):
    """Of a container what counts here."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


def policy(container: Labelled, wanted: TcpPolicy, connections: int, *, address_moves_along: bool) -> TcpPolicy:
    """Keep or close, for a container that has so many connections.

    Raises:
        Refused: it has some and must have none, they can't be kept, or the label is none that we know.

    """
    name = container.name
    if wanted is TcpPolicy.AUTO:
        wanted = _said_by_label(name, container.labels)
    if wanted is TcpPolicy.REFUSE and connections:
        raise _refused(
            f"{name} has {connections} TCP connection{'s' if connections > 1 else ''}",
            "--tcp close drops them, --tcp keep takes them along where the address moves",
        )
    if wanted is TcpPolicy.KEEP and not address_moves_along:
        raise _refused(
            f"the address of {name} does not move along, so its connections can't be kept",
            "give it a static address on a network that both hosts share (macvlan), or use --tcp close",
        )
    if wanted in (TcpPolicy.AUTO, TcpPolicy.REFUSE):
        return TcpPolicy.KEEP if address_moves_along else TcpPolicy.CLOSE
    return wanted


def _said_by_label(name: str, labels: Mapping[str, str]) -> TcpPolicy:
    said = labels.get(LABEL, TcpPolicy.AUTO)
    try:
        return TcpPolicy(said)
    except ValueError:
        known = ", ".join(TcpPolicy)
        raise _refused(
            f"{name} has the label {LABEL}={said}, which is none of {known}", "--tcp says it for this move"
        ) from None


def _refused(message: str, hint: str) -> Refused:
    reason = against(Why.CONNECTIONS, message, hint)
    return Refused(reason.code, message, hint=hint, reasons=(reason,))
