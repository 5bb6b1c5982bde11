"""Breadth first through every state; the shortest way to one; which states have no way to a good end.

A state is one number, made of three: each side, and what lies between, is stored once. What a side can do depends on
itself, on what lies between, and on little of the other side, so its steps are computed once for each such triple, and
kept as what they add to the number of the state.
"""

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from agent.base.errors import IllegalMove
from protocol.peer import DecisionKind
from tests.model import invariants
from tests.model.inert import inert
from tests.model.rules import Rules
from tests.model.source import SourceModel
from tests.model.state import FAULTS, Between, Call, Dump, Kind, Pages, Source, Step, Target
from tests.model.target import TargetModel

H = TypeVar("H", bound=Hashable)

BITS = 20
MASK = (1 << BITS) - 1
FEW = 8
"""Bits for what one side knows of the other."""
STEP, PERSON, FAULT = 0, 1, 2


class Numbers(Generic[H]):
    """Things seen, each with a number; `seen` is called once for each."""

    def __init__(self, seen: Callable[[H], None] = lambda _: None) -> None:
        self._numbers: dict[H, int] = {}
        self._seen = seen
        self.things: list[H] = []

    def of(self, thing: H) -> int:
        number = self._numbers.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
            self._seen(thing)
        return number


class State(NamedTuple):
    """One state of it all."""

    source: Source
    target: Target
    between: Between


@dataclass
class Found:
    """What a search has seen; a violation has ended it."""

    states: list[int] = field(default_factory=list)
    transitions: int = 0
    violation: str = ""
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.violation:
            way = [f"{number:3} {line}" for number, line in enumerate(self.trace, 1)]
            return "\n".join([*way, f"=> {self.violation}"])
        return f"{len(self.states):,} states, {self.transitions:,} transitions"


class Edges(NamedTuple):
    """The steps of one side: label and mark, and what to add; or why one of them must not be."""

    steps: list[tuple[int, int]]
    illegal: str = ""


class Search:
    """One search of the model under some rules, with some kinds of faults."""

    def __init__(self, rules: Rules, faults: Iterable[Kind] = FAULTS) -> None:
        self._kinds = {Kind.STEP, *faults}
        self._source = SourceModel(rules, Kind.PERSON in self._kinds)
        self._target = TargetModel(rules, Kind.PERSON in self._kinds)
        self._sources = Numbers(self._see_source)
        self._targets = Numbers(self._see_target)
        self._betweens: Numbers[Between] = Numbers()
        self._labels: Numbers[str] = Numbers()
        # by number of a side: what the other knows of it, whether its copy runs, what it breaks alone
        self._of_source: Numbers[tuple[DecisionKind | None, bool]] = Numbers()
        self._of_target: Numbers[tuple[bool, Pages, frozenset[Call], bool]] = Numbers()
        self._known: tuple[list[int], list[int]] = ([], [])
        self._runs: tuple[list[bool], list[bool]] = ([], [])
        self._breaks: tuple[list[str], list[str]] = ([], [])
        self._source_edges: dict[int, Edges] = {}
        self._target_edges: dict[int, Edges] = {}
        self._parents, self._by = array("I", [0]), array("I", [0])
        self._kept = tuple((array("I"), array("I")) for _ in (STEP, PERSON))
        self.found = Found()

    def _see_source(self, s: Source) -> None:
        self._known[0].append(self._of_source.of((self._source.said(s), s.dump is Dump.SERVES)))
        self._runs[0].append(s.runs)
        self._breaks[0].append(invariants.broken_at_source(s))

    def _see_target(self, t: Target) -> None:
        self._known[1].append(self._of_target.of((t.alive, t.pages, *inert(t))))
        self._runs[1].append(t.runs)
        self._breaks[1].append(invariants.broken_at_target(t))

    def state(self, index: int) -> State:
        packed = self.found.states[index]
        return State(
            self._sources.things[packed >> 2 * BITS],
            self._targets.things[packed >> BITS & MASK],
            self._betweens.things[packed & MASK],
        )

    # --- what follows from a state ---

    def _edges(self, packed: int) -> tuple[Edges, Edges]:
        """The steps that the source can take here, and the target."""
        source, target, between = packed >> 2 * BITS, packed >> BITS & MASK, packed & MASK
        key = (source << BITS | between) << FEW | self._known[1][target]
        ours = self._source_edges.get(key)
        if ours is None:
            ours = self._source_edges[key] = self._of_the_source(source, target, between)
        key = (target << BITS | between) << FEW | self._known[0][source]
        theirs = self._target_edges.get(key)
        if theirs is None:
            theirs = self._target_edges[key] = self._of_the_target(source, target, between)
        return ours, theirs

    def _of_the_source(self, source: int, target: int, between: int) -> Edges:
        t = self._targets.things[target]
        steps = self._source.steps(self._sources.things[source], self._betweens.things[between], t.alive, t.pages)

        def packed(step: Step) -> int:
            assert isinstance(step.side, Source)
            return self._sources.of(step.side) << 2 * BITS | self._betweens.of(step.between.without(*inert(t)))

        return self._packed(steps, "source", packed, source << 2 * BITS | between)

    def _of_the_target(self, source: int, target: int, between: int) -> Edges:
        said, serves = self._of_source.things[self._known[0][source]]
        steps = self._target.steps(self._targets.things[target], self._betweens.things[between], said, serves)

        def packed(step: Step) -> int:
            assert isinstance(step.side, Target)
            return self._targets.of(step.side) << BITS | self._betweens.of(step.between.without(*inert(step.side)))

        return self._packed(steps, "target", packed, target << BITS | between)

    def _packed(self, steps: Iterator[Step], who: str, packed: Callable[[Step], int], here: int) -> Edges:
        edges: dict[tuple[int, int], int] = {}
        try:
            for step in steps:
                if step.kind in self._kinds and (adds := packed(step) - here):
                    mark = {Kind.STEP: STEP, Kind.PERSON: PERSON}.get(step.kind, FAULT)
                    fault = "" if mark == STEP else f"[{step.kind}] "
                    edges.setdefault((adds, mark), self._labels.of(f"{who}: {fault}{step.label}") << 2 | mark)
        except IllegalMove as error:
            return Edges([], f"{who}: {error}")
        return Edges([(label, adds) for (adds, _), label in edges.items()])

    # --- the search ---

    def run(self) -> Found:
        """See every state; ends at the first that breaks an invariant, and no way to any such is shorter."""
        found = self.found
        states = found.states
        source, target, between = self._sources.of(Source()), self._targets.of(Target()), self._betweens.of(Between())
        states.append((source << BITS | target) << BITS | between)
        index = {states[0]: 0}
        (froms, tos), (person_froms, person_tos) = self._kept
        for here, packed in enumerate(states):  # it grows while it is walked
            ours, theirs = self._edges(packed)
            if ours.illegal or theirs.illegal:
                return self._violated(here, ours.illegal or theirs.illegal)
            for label, adds in chain(ours.steps, theirs.steps):
                after = packed + adds
                there = index.get(after)
                if there is None:
                    there = index[after] = len(states)
                    states.append(after)
                    self._parents.append(here)
                    self._by.append(label >> 2)
                    if why := self._broken(after):
                        return self._violated(there, why)
                mark = label & 3
                if mark == STEP:
                    froms.append(here)
                    tos.append(there)
                elif mark == PERSON:
                    person_froms.append(here)
                    person_tos.append(there)
            found.transitions += len(ours.steps) + len(theirs.steps)
        return found

    def _broken(self, packed: int) -> str:
        source, target = packed >> 2 * BITS, packed >> BITS & MASK
        if self._runs[0][source] and self._runs[1][target] and not self._betweens.things[packed & MASK].may_be_two:
            return invariants.TWICE
        return self._breaks[0][source] or self._breaks[1][target]

    def _violated(self, at: int, why: str) -> Found:
        self.found.violation = why
        self.found.trace = self.trace(at)
        return self.found

    def trace(self, at: int) -> list[str]:
        """The shortest way to a state, one line a step."""
        lines = []
        while at:
            lines.append(self._labels.things[self._by[at]])
            at = self._parents[at]
        return lines[::-1]

    # --- ways to a good end ---

    def stuck(self) -> dict[str, list[int]]:
        """The states that no agent gets out of by itself, by why that may be so; "" for those where it may not."""
        good = list(self.where(invariants.good_end))
        why: dict[str, list[int]] = {"": []}
        for number in self.without_a_way(good):
            why.setdefault(invariants.needs_person(*self.state(number)), []).append(number)
        if Kind.PERSON in self._kinds:  # what is left to a person, a person must be able to end
            why[""] += self.without_a_way(good, persons=True)
        return why

    def find(self) -> Found:
        """A violation in some state, or else a state without a way to a good end that should have one."""
        if not self.run().violation and (lost := self.stuck()[""]):
            self._violated(min(lost), invariants.NO_WAY)
        return self.found

    def without_a_way(self, ends: Iterable[int], *, persons: bool = False) -> list[int]:
        """The states from which no sequence of steps, none of them a fault, leads to one of `ends`."""
        froms, tos = self._kept[STEP]
        if persons:
            froms, tos = froms + self._kept[PERSON][0], tos + self._kept[PERSON][1]
        reached = _reaching(froms, tos, list(ends), len(self.found.states))
        return [number for number, so in enumerate(reached) if not so]

    def where(self, so: Callable[[Source, Target, Between], object]) -> Iterator[int]:
        """The states of which something is so."""
        return (number for number in range(len(self.found.states)) if so(*self.state(number)))


def _reaching(froms: "array[int]", tos: "array[int]", ends: list[int], count: int) -> bytearray:
    """Which of `count` nodes have a way to one of `ends`: the edges, sorted by where they lead, walked backwards."""
    begins = array("I", bytes(4 * (count + 2)))
    for to in tos:
        begins[to + 2] += 1
    for number in range(2, count + 2):
        begins[number] += begins[number - 1]
    into = array("I", bytes(4 * len(tos)))
    for before, to in zip(froms, tos, strict=True):
        into[begins[to + 1]] = before
        begins[to + 1] += 1
    reached = bytearray(count)
    for number in ends:
        reached[number] = 1
    while ends:
        to = ends.pop()
        for before in into[begins[to] : begins[to + 1]]:
            if not reached[before]:
                reached[before] = 1
                ends.append(before)
    return reached
