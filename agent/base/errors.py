"""Errors, by what they mean for the container that was to be moved.

    AgentError                 code, one sentence, hint
    |- Refused                 nothing was touched
    |- StepFailed              touched: the undo runs, the container goes on at the source
    |  |- CommandFailed  DockerFailed  TransferFailed  CorruptPart  FreezeFailed  DumpFailed  RestoreFailed
    |  |- StepTimeout  NotConverging  ContainerGone  Cancelled
    |- InDoubt                 decided, not answered: only asking again helps
    |- Stranded                an undo step failed: a person is needed; says what is left where
    `- Lost                    post-copy broke off for good: the container's state is gone
    IllegalMove(AssertionError)  a bug of ours; never on the wire

Each class is registered by its code, so that a peer's error is raised here as the class that it was there.
"""

from collections.abc import Sequence
from typing import ClassVar

from protocol.errors import Consequence, ErrorCode, ErrorInfo, Reason

_BY_CODE: dict[ErrorCode, type["AgentError"]] = {}


class AgentError(Exception):
    """An error with a code, one clear sentence and, where there is one, a hint at what to do."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    status: ClassVar[int] = 500
    consequence: ClassVar[Consequence] = Consequence.UNTOUCHED

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            _BY_CODE[cls.code] = cls

    def __init__(self, message: str, *, hint: str = "", detail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = tuple(detail)

    def info(self) -> ErrorInfo:
        return ErrorInfo(
            code=self.code, message=self.message, hint=self.hint, consequence=self.consequence, detail=self.detail
        )


class Refused(AgentError):
    """Said before anything was touched; carries its code as data, since there are many reasons and one consequence."""

    status = 409

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str = "",
        reasons: Sequence[Reason] = (),
        detail: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.code = code  # type: ignore[misc]
        self.reasons = tuple(reasons)

    def info(self) -> ErrorInfo:
        return super().info().model_copy(update={"reasons": self.reasons})


class StepFailed(AgentError):
    code = ErrorCode.INTERNAL
    consequence = Consequence.TAKEN_BACK


class CommandFailed(StepFailed):
    """An outside command ended with a code other than 0; `detail` has the end of its stderr."""

    code = ErrorCode.COMMAND_FAILED


class DockerFailed(StepFailed):
    code = ErrorCode.DOCKER_FAILED

    def __init__(self, message: str, *, hint: str = "", detail: Sequence[str] = (), http_status: int = 0) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.http_status = http_status
        """Docker's HTTP status; 0 where there was no answer at all."""


class TransferFailed(StepFailed):
    code = ErrorCode.TRANSFER_FAILED
    status = 502


class CorruptPart(StepFailed):
    """What arrived is not what was sent, or would write where it must not."""

    code = ErrorCode.CORRUPT_PART
    status = 400


class FreezeFailed(StepFailed):
    code = ErrorCode.FREEZE_FAILED


class DumpFailed(StepFailed):
    code = ErrorCode.DUMP_FAILED


class RestoreFailed(StepFailed):
    code = ErrorCode.RESTORE_FAILED


class StepTimeout(StepFailed):
    code = ErrorCode.STEP_TIMEOUT
    status = 504


class NotConverging(StepFailed):
    """Pre-copy: it writes faster than its memory can be sent, and nothing that may be done about it helps."""

    code = ErrorCode.NOT_CONVERGING


class ContainerGone(StepFailed):
    """The container died, or was removed, while it was being moved."""

    code = ErrorCode.CONTAINER_GONE


class Cancelled(StepFailed):
    code = ErrorCode.CANCELLED


class InDoubt(AgentError):
    code = ErrorCode.IN_DOUBT
    status = 503
    consequence = Consequence.IN_DOUBT


class Stranded(AgentError):
    code = ErrorCode.STRANDED
    consequence = Consequence.STRANDED


class Lost(AgentError):
    """Memory that only the source had did not get across, and the container had run at the target (rule 7)."""

    code = ErrorCode.LOST
    consequence = Consequence.STRANDED


class IllegalMove(AssertionError):
    """A transition that the table of phases does not have: a bug of ours; carries the migration's story."""


def from_wire(info: ErrorInfo) -> AgentError:
    """The error that a peer caught, as the same class here; an unregistered code is a refusal."""
    cls = _BY_CODE.get(info.code)
    if cls is None or cls is Refused:
        return Refused(info.code, info.message, hint=info.hint, reasons=info.reasons, detail=info.detail)
    return cls(info.message, hint=info.hint, detail=info.detail)
