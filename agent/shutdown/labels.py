"""What a container's labels wish for when its host is to be empty (docs/evacuate.md). Pure.

    transship.evacuate=no           it stays where it is, whoever evacuates the host; yes is the default
    transship.targets=host-b,host-c only these hosts, the first that can take it
    transship.priority=10           before those of a lower one; 0 is the default, negative numbers come last
    transship.return=no             once evacuated it stays there; `transship return` leaves it alone
    transship.return=auto           once evacuated it returns by itself as soon as its host takes containers again

A label that is not understood is as if it were not there, and is said so in what is told of the container.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from protocol.base import HostName

EVACUATE = "transship.evacuate"
TARGETS = "transship.targets"
PRIORITY = "transship.priority"
RETURN = "transship.return"

_HOST: TypeAdapter[str] = TypeAdapter(HostName)
AUTO = "auto"
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0", "never")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was understood of them."""

    goes: bool = True
    targets: tuple[str, ...] = ()
    """Hosts, the dearest first; none: any."""
    priority: int = 0
    returns: bool = True
    returns_by_itself: bool = False
    notes: tuple[str, ...] = ()
    """What was not understood, each a sentence."""


def read(labels: Mapping[str, str]) -> Wishes:
    notes: list[str] = []
    by_itself = labels.get(RETURN, "").strip().lower() == AUTO
    return Wishes(
        goes=_switch(labels, EVACUATE, notes),
        targets=_targets(labels, notes),
        priority=_priority(labels, notes),
        returns=by_itself or _switch(labels, RETURN, notes),
        returns_by_itself=by_itself,
        notes=tuple(notes),
    )


def _switch(labels: Mapping[str, str], label: str, notes: list[str]) -> bool:
    said = labels.get(label, "yes").strip().lower()
    if said not in _YES + _NO:
        notes.append(f"{label}={labels[label]} is neither yes nor no: taken for yes")
    return said not in _NO


def _targets(labels: Mapping[str, str], notes: list[str]) -> tuple[str, ...]:
    found = []
    for name in filter(None, (part.strip() for part in labels.get(TARGETS, "").split(","))):
        try:
            found.append(_HOST.validate_python(name))
        except ValidationError:
            notes.append(f"{TARGETS}: {name} is no name of a host")
    return tuple(dict.fromkeys(found))


def _priority(labels: Mapping[str, str], notes: list[str]) -> int:
    said = labels.get(PRIORITY, "0").strip()
    if re.fullmatch(r"[+-]?\d{1,6}", said, re.ASCII):
        return int(said)
    notes.append(f"{PRIORITY}={labels[PRIORITY]} is no number: taken for 0")
    return 0
