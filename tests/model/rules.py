"""What decides in the model: the product's own functions; and the ways in which the code around them can slip."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.base.errors import IllegalMove
from agent.migration import machine
from agent.migration.machine import OnRestart, Role
from protocol.peer import DecisionKind
from protocol.status import Phase

Resolutions = Mapping[tuple[Role, Phase], Mapping[DecisionKind, Phase]]


class Slip(StrEnum):
    """One thing done in another order than it should be, or not at all."""

    # The source
    ADDRESS_FIRST = "recovery needs the peer's address before anything, and gives up without it"
    GIVES_UP_TAKING_BACK = "a step of a recovery that fails ends it until the next start"
    CANCEL_STOPS_TAKING_BACK = "a cancel ends a recovery that is taking back"
    GIVES_UP_AFTER_DECISION = "a step that fails after the decision ends the work until the next start"
    CANCEL_BEFORE_DECIDING = "a cancel is taken after the write of the decision has begun"
    CANCELLED_WRITE_FORGOTTEN = "a cancel during a journal write leaves the run believing in the phase before"
    ABORT_THAWS_FIRST = "a person's abort thaws the source while its journal still says COMMITTED"
    DUMP_UNSEEN = "a CRIU that a crash has left behind is not seen by the recovery"
    FORGETS_UNCONFIRMED = "an end that the target has not confirmed is pruned"
    NOT_MENDED = "a decision whose write has failed is taken back before the journal says so"
    NOT_STARTED_AFTER_DEATH = "a container that died while its policy was no is not started by the undo"
    POLICY_LEFT = "the source's restart policy is left on"
    COMMITS_UNJOURNALED = "go is said before the decision is on the disk"
    KILLS_WITH_PAGES_MISSING = "in post-copy the source's copy is ended when the target's runs"
    THAWS_UNDER_CRIU = "an undo that CRIU does not let go of its tasks for thaws them all the same"
    UNDOES_UNDER_A_ROUND = "an undo takes away the images that a round of pre-copy is writing"
    KILLS_UNCONFIRMED = "the source's copy is ended before the target has confirmed"
    # The target
    SETTLES_UNRELEASED = "a target is settled although its copy was never let run"
    RUNS_UNSEEN = "RUNNING is entered before the copy is known to be there, and is not left if it is gone"
    DISCARDS_UNCHECKED = "whether to discard is asked before the lock is had, and not again"
    FORGET_DROPS_WAITING = "`forget` drops a target that waits in PREPARED"
    NOT_STARTED_AFTER_REBOOT = "a copy that ran and was ended by a reboot before it was settled is not started"
    POLICY_EARLY = "the target's container gets its restart policy when it is created"
    RUNS_ON_ZEROS = "a copy whose memory can't come any more is not held"
    WHOLE_WITHOUT_CHANNEL = "a target that has no page channel any more takes its memory for whole"
    RELEASED_EARLY = "that the copy runs is noted before it does"


OPEN: frozenset[Slip] = frozenset()
"""What the product does today, each with where. One that is mended there is taken out; the search goes on looking."""


@dataclass(frozen=True)
class Rules:
    """All that decides. By default the product's, with the order of effects as it should be."""

    move: Callable[..., Phase] = machine.move
    decision: Callable[[Phase | None], DecisionKind] = machine.decision
    on_restart: Callable[[Role, Phase], OnRestart] = machine.on_restart
    may_cancel: Callable[[Phase], bool] = machine.may_cancel
    may_run: Callable[[Phase], bool] = machine.may_run
    may_expire: Callable[[Phase], bool] = machine.may_expire
    answer_to_asking: Callable[[Phase, DecisionKind], Phase | None] = machine.answer_to_asking
    resolutions: Resolutions = field(default_factory=lambda: machine.RESOLUTIONS)
    lazy: bool = False
    """The memory follows when the copy runs (post-copy)."""
    rounds: bool = False
    """CRIU takes memory before the freeze, too (pre-copy)."""
    slips: frozenset[Slip] = frozenset()


class Broken(IllegalMove):
    """A step that no agent may take."""
