"""Which container goes where, when a host is to be empty, and why; and which can't, and why not. Pure, and stable.

Containers come by priority, then the smaller ones first: a deadline cuts off as few as can be. Each goes to the first
host of its label that can take it, else to the one with the most memory left. No host is given more than it has free:
what has been given to it counts, and so do the images of those that are on their way at the same time.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.shutdown.places import Leaving, Origin, Place, against
from protocol.errors import ErrorCode, Reason

SETUP_SECONDS: Final = 2.0
"""Of a move, whatever its size: preflight, reservation, staging, restore, removal."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What whoever evacuates has asked for."""

    only: tuple[str, ...] = ()
    """Hosts that may be used; none: any that there is."""
    parallel: int = 4
    seconds: float | None = None
    """Until everything has to be done."""


@dataclass(frozen=True, slots=True)
class Against:
    """Why not this host."""

    host: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one container."""

    one: Leaving
    to: str | None = None
    why: str = ""
    """Why it goes there, or that it stays by its label; a sentence."""
    against: tuple[Against, ...] = ()
    """Why not to the others."""
    left: Reason | None = None
    """Why it can't go."""
    begins_s: float = 0
    ends_s: float = 0
    """As predicted, from the beginning on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """In the order in which they are to be moved; those that stay are last."""

    placements: tuple[Placement, ...]

    @property
    def going(self) -> tuple[Placement, ...]:
        return tuple(each for each in self.placements if each.to is not None)


def order(leaving: Sequence[Leaving]) -> list[Leaving]:
    """By priority, the smaller ones first; by name where there is nothing else."""
    return sorted(leaving, key=lambda one: (-one.priority, one.bytes, one.name, one.id))


def plan(origin: Origin, leaving: Sequence[Leaving], wanted: Wanted) -> Plan:
    """Place each of them, or say why it can't be."""
    books = {place.name: _Book(place, wanted.parallel) for place in sorted(origin.others, key=lambda each: each.name)}
    slots = [0.0] * max(1, wanted.parallel)
    going: list[Placement] = []
    staying: list[Placement] = []
    for one in order(leaving):
        found = _stays(one) or _place(origin, one, books, slots, wanted)
        (staying if found.to is None else going).append(found)
    return Plan((*sorted(going, key=lambda each: each.begins_s), *staying))


@dataclass(slots=True)
class _Book:
    """What has been promised of a host, and when its ways in are free again."""

    place: Place
    parallel: int
    memory: int = 0
    rooms: list[int] = field(default_factory=list)
    ways: list[float] = field(init=False)

    def __post_init__(self) -> None:
        free = min(self.parallel, self.place.at_once - self.place.underway)
        self.ways = [0.0] * free if free > 0 else [SETUP_SECONDS]  # when one of those that are on their way has ended

    def left_after(self, one: Leaving) -> int:
        """Bytes that stay free at the worst moment, once this one has been given to it, too."""
        rooms = heapq.nlargest(len(self.ways), [*self.rooms, one.room_bytes])
        return self.place.free_bytes - self.memory - one.memory_bytes - sum(rooms)

    def give(self, one: Leaving, ends_s: float) -> None:
        self.memory += one.memory_bytes
        self.rooms.append(one.room_bytes)
        heapq.heapreplace(self.ways, ends_s)


def _stays(one: Leaving) -> Placement | None:
    """What can be said without looking at any host."""
    if not one.goes:
        return Placement(one, why="its label transship.evacuate says that it stays")
    if one.against:
        first, *more = one.against
        message = first.message + (f" (and {len(more)} more)" if more else "")
        return Placement(one, left=first.model_copy(update={"message": message}))
    return None


def _place(origin: Origin, one: Leaving, books: Mapping[str, _Book], slots: list[float], wanted: Wanted) -> Placement:
    left: dict[str, int] = {}
    no: list[Against] = []
    for name, book in books.items():
        reasons = against(origin, one, book.place, wanted.only) or _room(book, one)
        if reasons:
            no.append(Against(name, reasons))
        else:
            left[name] = book.left_after(one)
    no += [Against(name, (_unknown(name),)) for name in _named(one, wanted) if name not in books]
    if not left:
        return Placement(one, against=tuple(no), left=_nowhere(one, no))
    to, why = _best(one, left, books)
    no += [Against(name, (_worse(one, name, to, left),)) for name in left if name != to]
    begins = max(slots[0], books[to].ways[0])
    ends = begins + seconds(one, books[to].place, wanted.parallel)
    shown = tuple(sorted(no, key=lambda each: each.host))
    if wanted.seconds is not None and ends > wanted.seconds:
        return Placement(one, against=shown, left=_too_late(to, ends, wanted.seconds))
    heapq.heapreplace(slots, ends)
    books[to].give(one, ends)
    return Placement(one, to, why, shown, None, begins, ends)


def seconds(one: Leaving, place: Place, parallel: int) -> float:
    """How long its move is predicted to take, while others share the link."""
    return SETUP_SECONDS + one.bytes * max(1, min(parallel, place.at_once)) / place.bytes_a_second


def _named(one: Leaving, wanted: Wanted) -> list[str]:
    """Hosts that somebody has named for it, whether they are there or not."""
    return list(dict.fromkeys((*one.targets, *wanted.only)))


def _best(one: Leaving, left: Mapping[str, int], books: Mapping[str, _Book]) -> tuple[str, str]:
    for rank, name in enumerate(one.targets, 1):
        if name in left:
            which = "the first" if rank == 1 else f"number {rank}"
            return name, f"it is {which} of the label transship.targets, and {_mib(left[name])} stay free there"
    # what has just been promised to one counts: several hosts alike are filled evenly
    to = min(left, key=lambda name: (-left[name], name))
    only = "" if len(left) > 1 else "the only one that can take it: "
    return to, f"{only}{_mib(left[to])} stay free there" + (", the most" if len(left) > 1 else "")


def _worse(one: Leaving, name: str, to: str, left: Mapping[str, int]) -> Reason:
    if one.targets:
        return Reason(code=ErrorCode.NO_TARGET, message=f"{to} comes first in the label transship.targets")
    than = "fewer than" if left[name] < left[to] else "as many as"
    message = f"{_mib(left[name])} would stay free there, {than} on {to}"
    return Reason(code=ErrorCode.NO_TARGET, message=message)


def _room(book: _Book, one: Leaving) -> tuple[Reason, ...]:
    if book.left_after(one) >= 0:
        return ()
    needed = one.memory_bytes + one.room_bytes
    free = max(0, book.left_after(one) + needed)
    message = f"{_mib(needed)} of memory are needed, {_mib(free)} are free"
    if book.memory:
        message += f" once it has taken {_mib(book.memory)} of others"
    hint = "images and container are in memory together for a moment"
    return (Reason(code=ErrorCode.NO_MEMORY, message=message, hint=hint),)


def _unknown(name: str) -> Reason:
    return Reason(code=ErrorCode.NO_SUCH_HOST, message="no such host is known", hint="`transship hosts` lists them")


def _nowhere(one: Leaving, no: Sequence[Against]) -> Reason:
    """The one reason, where it is the same everywhere or there is one host only."""
    if not no:
        return Reason(code=ErrorCode.NO_TARGET, message="there is no other host", hint="`transship hosts` lists them")
    said = "; ".join(f"{each.host}: {each.reasons[0].message}" for each in no)
    codes = {each.reasons[0].code for each in no}
    return Reason(
        code=codes.pop() if len(codes) == 1 else ErrorCode.NO_TARGET,
        message=f"no host can take it: {said}",
        hint=next((each.reasons[0].hint for each in no if each.reasons[0].hint), ""),
    )


def _too_late(to: str, ends: float, limit: float) -> Reason:
    return Reason(
        code=ErrorCode.TOO_LITTLE_TIME,
        message=f"it would be on {to} after {ends:.0f} s, and {limit:.0f} s are left",
        hint="more time, more moves at once, or a higher transship.priority",
    )


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
