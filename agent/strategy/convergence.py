"""When rounds of pre-copy end: QEMU's rule, and what is done where they never would. Pure: figures in, a verdict out.

It is frozen when what is left, at the rate that was measured, and all that does not depend on it fit into the blackout
that is allowed. Rounds, their time and their bytes are bounded. What does not get smaller is throttled step by step if
that is allowed, then left to post-copy if that is, else given up: the container runs on.

The same rule, gone through beforehand with what a container was seen to write, tells what its rounds would come to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.checkpoint.dirty import Written
from protocol.status import Round

FIXED_MS = 500.0
"""What no memory changes: runc and CRIU on both sides, the network, files that have changed, the decision. Of a host
that has not moved anything yet; from then on it is what its own last moves have shown.
"""
USUAL_HELD_MS = 60.0
"""For so long CRIU holds tasks of little memory in a round; in FIXED_MS it is contained."""
CRIU_RATE = 1.2e9
"""Bytes a second that CRIU writes into images, and reads from them, when the processors have nothing else to do."""
SHRINKS = 0.8
"""What is left after a round must be less than this of what was left before it, or it does not get smaller."""
LITTLE = 0.01
"""Of its memory: where no blackout is asked for, less than that is not worth another round."""
STEP = 20
"""Per cent, between two steps of the throttle."""
ROUND_SECONDS = 0.5
"""What a round takes of little memory: runc and CRIU start, and look at the tasks."""


class Then(StrEnum):
    """What comes after a round."""

    ROUND = "round"
    THROTTLE = "throttle"  # slow it down by so much more, then a round
    FREEZE = "freeze"
    POSTCOPY = "postcopy"  # freeze, and let what is left follow
    GIVE_UP = "give-up"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the request says of it."""

    max_blackout_ms: int | None = None
    throttle: int = 0
    """Per cent at most."""
    postcopy: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where rounds end, whatever came of them."""

    rounds: int = 16
    seconds: float = 900.0
    copies: float = 6.0
    """As many times its memory may be sent."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done, how far it is throttled then, and why."""

    then: Then
    throttle: int = 0
    why: str = ""


def memory_ms(left: float, rate: float, memory: int, held_ms: float = 0.0) -> float:
    """What so many bytes left add to the blackout, of so much memory, all of which the target reads from its images."""
    slow = max(0.0, held_ms - USUAL_HELD_MS)
    return slow + left / min(rate, CRIU_RATE) * 1000 + memory / CRIU_RATE * 1000


def verdict(done: Sequence[Round], memory: int, wishes: Wishes, bounds: Bounds | None = None) -> Verdict:
    """What comes after the last of these rounds, of which there is at least one."""
    last, throttled = done[-1], done[-1].throttled
    limit = wishes.max_blackout_ms
    if limit is not None and last.predicted_ms <= limit:
        return Verdict(Then.FREEZE, throttled, f"{last.predicted_ms:.0f} ms predicted, within {limit} ms")
    spent = _spent(done, memory, bounds or Bounds())
    shrinks = len(done) < 2 or last.left_bytes < SHRINKS * done[-2].left_bytes
    if limit is None:
        if spent or not shrinks or last.left_bytes <= LITTLE * memory:
            return Verdict(Then.FREEZE, throttled, spent or "another round would not make it less")
        return Verdict(Then.ROUND, throttled)
    if shrinks and not spent:
        return Verdict(Then.ROUND, throttled)
    if throttled < wishes.throttle and not spent:
        more = min(throttled + STEP, wishes.throttle)
        return Verdict(Then.THROTTLE, more, f"it does not get smaller; throttled by {more} %")
    why = spent or "it writes faster than that can be sent"
    return Verdict(Then.POSTCOPY if wishes.postcopy else Then.GIVE_UP, throttled, why)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What its rounds would meet."""

    memory: int
    written: Written
    rate: float
    """Bytes a second while it runs, which may be limited."""
    frozen_rate: float
    """And while it is frozen, when nothing is."""
    fixed_ms: float = FIXED_MS


def foresee(ahead: Ahead, wishes: Wishes, bounds: Bounds | None = None) -> Round:
    """The last of its rounds, as they would be."""
    found, left, done = Verdict(Then.ROUND), ahead.memory, list[Round]()
    while found.then in (Then.ROUND, Then.THROTTLE):
        sent, seconds = left, ROUND_SECONDS + left / min(ahead.rate, CRIU_RATE)
        left = min(ahead.memory, int(ahead.written.after(seconds) * (1 - found.throttle / 100)))
        done.append(
            Round(
                number=len(done) + 1,
                bytes=sent,
                file_bytes=0,
                ms=seconds * 1000,
                frozen_ms=0,
                left_bytes=left,
                rate=ahead.frozen_rate,
                predicted_ms=ahead.fixed_ms + memory_ms(left, ahead.frozen_rate, ahead.memory),
                throttled=found.throttle,
            )
        )
        found = verdict(done, ahead.memory, wishes, bounds)
    return done[-1]


def _spent(done: Sequence[Round], memory: int, bounds: Bounds) -> str:
    """Which bound is reached, if any is."""
    if len(done) >= bounds.rounds:
        return f"{len(done)} rounds are the most there may be"
    if sum(each.ms for each in done) > bounds.seconds * 1000:
        return f"rounds may go on for {bounds.seconds:g} s"
    if sum(each.bytes for each in done) > bounds.copies * memory:
        return f"its memory was sent {bounds.copies:g} times over"
    return ""
