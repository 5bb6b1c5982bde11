"""Strict reading of what came over a wire, and plain words for what is wrong with it.

Nothing is guessed: no text for a number, no unknown field (but in what has to be understood of a newer one, too), no
other version. Needed by whoever receives.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from protocol.base import PROTOCOL_VERSION, CommandId
from protocol.commands import COMMAND, Command
from protocol.errors import ErrorCode, ErrorInfo, Reason

MAX_COMMAND_BYTES: Final = 64 << 10
"""Many times what any command needs."""

_COMMAND_ID: TypeAdapter[str] = TypeAdapter(CommandId)
_SHOWN_CHARACTERS = 60

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Unreadable(ValueError):
    """What came in is not a message of this contract; `info` says why, `command` is its id, if it had one."""

    def __init__(self, info: ErrorInfo, command: str | None = None) -> None:
        super().__init__(info.message)
        self.info = info
        self.command = command


def read(model: type[M], data: bytes | str, *, newer: bool = False) -> M:
    """Read one message; with `newer` also one that has fields which are not known here.

    Raises:
        Unreadable: it is not such a message.

    """
    return _read(TypeAdapter(model), data, model.__name__, tagged=False, extra="ignore" if newer else None)


def read_command(data: bytes) -> Command:
    """Read a command.

    Raises:
        Unreadable: it is no command, or none that is understood here.

    """
    if len(data) > MAX_COMMAND_BYTES:
        raise Unreadable(_bad(f"a command of {len(data)} bytes is too large; the limit is {MAX_COMMAND_BYTES}"))
    return _read(COMMAND, data, "command", tagged=True)


def explain(error: ValidationError) -> tuple[str, ...]:
    """Each fault in plain words, led by the path of the field that it is in."""
    return tuple(_fault(details, details["loc"]) for details in error.errors(include_url=False))


def _read(
    adapter: TypeAdapter[T], data: bytes | str, what: str, *, tagged: bool, extra: Literal["ignore"] | None = None
) -> T:
    try:
        raw = from_json(data)
    except ValueError as error:
        raise Unreadable(_bad(f"this is not JSON: {error}", hint="send one JSON object, encoded as UTF-8")) from None
    if not isinstance(raw, dict):
        raise Unreadable(_bad(f"a {what} is a JSON object, not {_kind_of(raw)}"))
    command = _id_of(raw)
    version = raw.get("version", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION or isinstance(version, bool | float):
        raise Unreadable(_other_version(version), command)
    try:
        return adapter.validate_json(data, strict=True, extra=extra)
    except ValidationError as error:
        # In a union the tag leads each location; it is no field.
        faults = [_fault(details, details["loc"][int(tagged) :]) for details in error.errors(include_url=False)]
        message = faults[0] if len(faults) == 1 else f"{len(faults)} faults: " + "; ".join(faults)
        reasons = [Reason(code=ErrorCode.BAD_COMMAND, message=fault) for fault in faults] if len(faults) > 1 else []
        raise Unreadable(_bad(message, reasons=reasons), command) from None


def _bad(message: str, hint: str = "", reasons: Sequence[Reason] = ()) -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.BAD_COMMAND,
        message=message,
        hint=hint or "the JSON schemas in docs/contract say what each message looks like",
        reasons=tuple(reasons),
    )


def _other_version(version: object) -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.UNSUPPORTED_VERSION,
        message=f"version {_shown(version)} of the contract is not spoken here; version {PROTOCOL_VERSION} is",
        hint="the retained status of each host lists the versions it speaks, as `protocols`",
    )


def _id_of(raw: Mapping[str, Any]) -> str | None:
    try:
        return _COMMAND_ID.validate_python(raw.get("id"), strict=True)
    except ValidationError:
        return None


def _fault(details: ErrorDetails, location: tuple[int | str, ...]) -> str:
    path = _path(location)
    context = details.get("ctx", {})
    given = _shown(details["input"])
    match details["type"]:
        case "missing":
            return f"{path} is missing"
        case "extra_forbidden":
            return f"{path} is not a field of this message"
        case "union_tag_not_found":
            return f"{context['discriminator'].strip(chr(39))} is missing; it says what is to be done"
        case "union_tag_invalid":
            return f"kind {_shown(context['tag'])} is not known; known are {_listed(context['expected_tags'])}"
        case "literal_error" | "enum":
            return f"{path} is {given}: it must be {_listed(context['expected'])}"
        case "string_pattern_mismatch":
            return f"{path} is {given}: it must match {context['pattern']}"
        case _:
            message = details["msg"]
            return f"{path} is {given}: {message[:1].lower()}{message[1:]}"


def _path(location: tuple[int | str, ...]) -> str:
    """The field as a person would write it: mounts[2].name."""
    names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(names).removeprefix(".") or "the message"


def _listed(expected: str) -> str:
    return expected.replace("'", "")


def _shown(value: object) -> str:
    text = to_json(value, fallback=repr).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case _:
            return "an array"
