"""What becomes of each container when the host goes down, and in which order: planned before any is touched. Pure.

Containers go by their priority (`transship.priority`), then the smaller ones first: so a deadline that is too short for
all costs as few as can be. Each has its own wish first; where the time that is left by then is too short for that it
gets the next one: evacuate, else hibernate, else stop.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.shutdown.wishes import EVACUATE, HIBERNATE

STOP: Final = "stop"
SETUP_SECONDS: Final = 1.0
"""Of a hibernation, whatever its size: freeze, CRIU's start, the last fsync."""
MOVE_SECONDS: Final = 4.0
"""Of a move, the same."""
STOP_SECONDS: Final = 5.0
"""Kept for those that are only stopped."""


@dataclass(frozen=True, slots=True)
class Going:
    """A container that is not left to Docker."""

    id: str
    name: str
    wish: str
    bytes: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second."""

    disk: float
    link: float


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one of them."""

    one: Going
    what: str
    ends_s: float
    """As predicted, from the beginning on."""

    def __str__(self) -> str:
        less = "" if self.what == self.one.wish else f" (no time to {self.one.wish})"
        return f"{self.one.name}: {self.what}{less} by {self.ends_s:.1f} s"


def plan(going: Iterable[Going], seconds: float, rates: Rates, *, can_evacuate: bool) -> tuple[Step, ...]:
    """In the order in which it is to be done; moves go on beside the writing, and keep to the link."""
    ordered = sorted(going, key=lambda one: (-one.priority, one.bytes, one.name))
    moved = written = 0.0
    steps = []
    for one in ordered:
        move = moved + MOVE_SECONDS + one.bytes / rates.link
        write = written + SETUP_SECONDS + one.bytes / rates.disk
        if one.wish == EVACUATE and can_evacuate and move <= seconds - STOP_SECONDS:
            moved = move
            steps.append(Step(one, EVACUATE, move))
        elif one.wish in (EVACUATE, HIBERNATE) and write <= seconds - STOP_SECONDS:
            written = write
            steps.append(Step(one, HIBERNATE, write))
        else:
            steps.append(Step(one, STOP, max(0.0, seconds)))
    return tuple(steps)
