"""What happens in one run of a campaign, by the seed and the run's number alone.

The first accident of a run goes through every cell of (moment, side, accident) in one order, and a seed begins where a
campaign of the seed before ends: so as many runs as there are cells have tried each of them, whatever the seeds. A
second one, in about a third of the runs, is drawn, at no earlier moment: it does not keep the first from its phase.
"""

import enum
import random
from dataclasses import dataclass

from lab.chaos.loads import Load


class Accident(enum.StrEnum):
    """What happens."""

    AGENT_KILLED = "agent killed"
    AGENT_STOPPED = "agent stopped"
    CRIU_KILLED = "criu killed"
    RUNC_KILLED = "runc killed"
    SHIM_KILLED = "containerd-shim killed"
    DOCKERD_KILLED = "dockerd killed"
    CONTAINERD_KILLED = "containerd killed"
    HOST_GONE = "host gone"
    LINK_CUT = "link cut"
    LINK_SLOW = "link slow"
    BROKER_GONE = "broker gone"
    DISK_FULL = "journal's disk full"
    DOCKER_FULL = "Docker's disk full"
    TMPFS_FULL = "tmpfs full"
    MEMORY_LIMIT = "memory limit hit"
    TRUNCATED = "stream truncated"
    FLIPPED = "bit flipped"
    CLOCK_OFF = "clock off"
    DUPLICATE = "command doubled"
    STALE = "command stale"
    CANCEL = "cancel"


BOTH, NEITHER = ("source", "target"), ("",)
SIDES: dict[Accident, tuple[str, ...]] = {
    Accident.LINK_SLOW: ("target",),
    Accident.BROKER_GONE: NEITHER,
    Accident.TRUNCATED: ("target",),
    Accident.FLIPPED: ("target",),
    Accident.CLOCK_OFF: ("target",),
    Accident.DUPLICATE: ("source",),
    Accident.STALE: ("source",),
    Accident.CANCEL: ("source",),
}
"""Where an accident can happen, other than on either side."""

Moment = tuple[str, str]
MOMENTS: tuple[Moment, ...] = (
    ("source", "planned"),
    ("target", "reserved"),
    ("source", "reserved"),
    ("target", "staged"),
    ("source", "copying"),
    ("source", "frozen"),
    ("target", "restoring"),
    ("target", "prepared"),
    ("source", "prepared"),
    ("source", "committed"),
    ("target", "running"),
    ("source", "running"),
)
"""Whose journal enters which phase, in the order of a move that nothing happens to."""

_NOT_YET = (
    *((accident, side) for accident in (Accident.CRIU_KILLED, Accident.TMPFS_FULL) for side in BOTH),
    (Accident.RUNC_KILLED, "source"),
    (Accident.SHIM_KILLED, "target"),
    (Accident.MEMORY_LIMIT, "target"),
)


def can_be(accident: Accident, side: str, moment: Moment) -> bool:
    """Whether there is anything to hit: no CRIU, no copy before the target has staged; a clock is off all the time."""
    if accident is Accident.CLOCK_OFF:
        return moment == MOMENTS[0]
    return (accident, side) not in _NOT_YET or MOMENTS.index(moment) > 2


STRATEGIES = ("cold", "cold", "postcopy", "auto")
HOLD_SECONDS = (0.0, 0.0, 0.3, 1.5, 6.0)
"""For how long it lasts (the agent is not started again, the link is down, ...) before it is mended."""
DELAYS_MS = (0, 0, 0, 2, 10, 40, 120)
"""After the moment's event: what is hit is some step within the phase."""
CONTAINER_RUNS = 8
PIECE = 100
"""Runs of a campaign: so much further in the order of all cells each seed begins."""
LOADS = (Load.COUNTER, Load.COUNTER, Load.RECORDS, Load.RECORDS, Load.RECORDS, Load.LARGE)


@dataclass(frozen=True, slots=True)
class Fault:
    """One accident, when and where."""

    accident: Accident
    side: str
    moment: Moment
    delay_ms: int
    hold_s: float
    seed: int

    def __str__(self) -> str:
        where = f" at the {self.side}" if self.side else ""
        role, phase = self.moment
        return f"{self.accident}{where} when the {role} is {phase} (+{self.delay_ms} ms, for {self.hold_s:g} s)"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    run: int
    load: Load
    strategy: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"seed {self.seed} run {self.run}: {self.load}, {self.strategy}; {'; then '.join(map(str, self.faults))}"


def cells() -> list[tuple[Accident, str, Moment]]:
    """Every accident on every side at every moment where it can be."""
    return [
        (accident, side, moment)
        for accident in Accident
        for side in SIDES.get(accident, BOTH)
        for moment in MOMENTS
        if can_be(accident, side, moment)
    ]


def plan(seed: int, run: int) -> Plan:
    order = cells()
    random.Random("order").shuffle(order)
    dice = random.Random(f"run {seed} {run}")
    load = random.Random(f"load {seed} {run // CONTAINER_RUNS}").choice(LOADS)
    chosen = [order[(seed * PIECE + run) % len(order)]]
    if dice.random() < 0.35:
        first = MOMENTS.index(chosen[0][2])
        chosen.append(dice.choice([cell for cell in order if MOMENTS.index(cell[2]) >= first]))
    faults = [
        Fault(*cell, dice.choice(DELAYS_MS), dice.choice(HOLD_SECONDS), dice.randrange(1 << 30)) for cell in chosen
    ]
    # What needs the memory to be still on its way is only seen where it is.
    late = any(fault.moment in (("target", "running"), ("source", "running")) for fault in faults)
    always = any(fault.accident is Accident.CRIU_KILLED and _is_done_cold(fault) for fault in faults[:1])
    strategy = "postcopy" if always or (late and dice.random() < 0.7) else dice.choice(STRATEGIES)
    return Plan(seed, run, load, strategy, tuple(sorted(faults, key=lambda fault: MOMENTS.index(fault.moment))))


def _is_done_cold(fault: Fault) -> bool:
    """Whether CRIU has done its work on that side by then, but for memory that is still to come."""
    return MOMENTS.index(fault.moment) >= MOMENTS.index(
        ("target", "restoring" if fault.side == "source" else "running")
    )
