"""One container of an evacuation, as far as it is: what has become of it, and what follows from how a move came out."""

import logging
from dataclasses import dataclass, field
from typing import Final

from agent.migration.report import report
from agent.migration.run import Run
from agent.shutdown.places import Leaving
from agent.shutdown.planner import Placement
from protocol.errors import Consequence, ErrorCode, ErrorInfo, Reason
from protocol.evacuation import Evacuee, EvacueeState, NotThere
from protocol.status import Phase

log = logging.getLogger("agent.shutdown")

OF_TARGET: Final = frozenset(
    {
        ErrorCode.NO_SUCH_HOST,
        ErrorCode.HOST_OFFLINE,
        ErrorCode.HOST_CORDONED,
        ErrorCode.PEER_UNREACHABLE,
        ErrorCode.PEER_NOT_ALLOWED,
        ErrorCode.PEER_REFUSED,
        ErrorCode.INCOMPATIBLE,
        ErrorCode.CRIU_UNUSABLE,
        ErrorCode.DOCKER_UNAVAILABLE,
        ErrorCode.NAME_TAKEN,
        ErrorCode.ADDRESS_TAKEN,
        ErrorCode.PORT_TAKEN,
        ErrorCode.NETWORK_MISSING,
        ErrorCode.VOLUME_CONFLICT,
        ErrorCode.NO_SPACE,
        ErrorCode.NO_MEMORY,
    }
)
"""Another host may say otherwise."""
LATE: Final = ErrorCode.TOO_LITTLE_TIME
FINAL: Final = frozenset({ErrorCode.CONTAINER_GONE, ErrorCode.CANCELLED})
"""Taken back, and not to be tried again: its program has ended, or somebody did not want it moved."""
TRIES: Final = 2
"""At the same target, where a move was begun and taken back; then another one."""
BUSY_SECONDS: Final = 60.0
"""How long one waits for a place that others take up."""


@dataclass(slots=True)
class Row:
    """What is known of it beside what is shown."""

    leaving: Leaving
    shown: Evacuee
    attempts: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """By target: moves there that were taken back."""
    busy: bool = False
    """It was turned away just now because too much was going on."""
    busy_since: float | None = None

    @property
    def state(self) -> EvacueeState:
        return self.shown.state

    def say(self, **changes: object) -> None:
        self.shown = self.shown.model_copy(update=changes)

    def planned(self, placement: Placement, *, final: bool) -> None:
        """Say what is planned of it; `final`: what can't go now won't."""
        not_there = tuple(NotThere(host=no.host, reasons=no.reasons) for no in placement.against)
        predicted = round(placement.ends_s, 1) if placement.to is not None else None
        self.say(to=placement.to, why=placement.why, not_there=not_there, predicted_s=predicted)
        if placement.left is None and placement.to is None:
            self.say(state=EvacueeState.STAYS)
        elif placement.left is not None and final:
            self.leave(self._why(placement.left))

    def _why(self, left: Reason) -> ErrorInfo:
        """What a move has come to grief with says more than that no host is left to try."""
        before = self.shown.error
        if before is not None and before.consequence is Consequence.TAKEN_BACK and left.code is not LATE:
            return before
        return ErrorInfo(code=left.code, message=left.message, hint=left.hint, reasons=self.leaving.against)

    def leave(self, why: ErrorInfo) -> None:
        """It is not moved."""
        self.say(state=EvacueeState.LEFT, error=why)

    def gone(self) -> None:
        """It has ended meanwhile: there is nothing to move."""
        message = f"{self.shown.container} is not running any more"
        self.leave(ErrorInfo(code=ErrorCode.CONTAINER_GONE, message=message))

    def arrived(self, run: Run) -> None:
        told = report(run)
        notes = (*self.leaving.notes, *told.notes)
        self.say(
            state=EvacueeState.MOVED, blackout_ms=told.blackout_ms, total_ms=told.total_ms, notes=notes, error=None
        )

    def ended(self, run: Run, now: float) -> None:
        """A move of it has."""
        if run.phase is Phase.DONE and run.failure is None:
            self.arrived(run)
        elif run.failure is not None:
            self.came_to_grief(run.failure, now)
        else:  # taken back by an agent that had just been started
            self.say(state=EvacueeState.WAITING)

    def came_to_grief(self, error: ErrorInfo, now: float) -> None:
        """Somewhere else, later, or not at all."""
        to = self.shown.to or ""
        log.warning("%s did not get to %s: %s", self.shown.container, to, error.message)
        if error.code is ErrorCode.BUSY:
            self.busy, self.busy_since = True, self.busy_since or now
            if now - self.busy_since > BUSY_SECONDS:
                self.leave(error)
            else:
                self.say(state=EvacueeState.WAITING)
        elif error.code in OF_TARGET:
            self._elsewhere(to, error)
        elif error.consequence is Consequence.TAKEN_BACK and error.code not in FINAL:
            self.failed[to] = self.failed.get(to, 0) + 1
            if self.failed[to] >= TRIES:
                self._elsewhere(to, error)
            else:
                self.say(state=EvacueeState.WAITING, error=error)
        else:
            self.leave(error)

    def _elsewhere(self, to: str, error: ErrorInfo) -> None:
        reason = Reason(code=error.code, message=error.message, hint=error.hint)
        self.leaving = self.leaving.refused_by(to, reason)
        self.say(state=EvacueeState.WAITING, error=error)
