"""The little of protobuf that CRIU's images and Docker's local log need: varints, and fields by length."""

from collections.abc import Iterator

MOST_VARINT_BYTES = 10
FIXED = {1: 8, 5: 4}
"""Bytes of a field by its wire type."""


class MalformedError(ValueError):
    """The bytes are no message."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it.

    Raises:
        MalformedError: the data ends too early, or it is longer than any number.

    """
    value = 0
    for place, byte in enumerate(data[at : at + MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return value, at + place + 1
    raise MalformedError(f"no number at {at} of {len(data)} bytes")


def fields(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message by number, the last of each: numbers, and strings, bytes and messages as bytes.

    Raises:
        MalformedError: it is no message.

    """
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        number, start, end = field(data, at)
        found[number] = varint(data, start)[0] if data[at] & 7 == 0 else data[start:end]
        at = end
    return found


def field(data: bytes, at: int) -> tuple[int, int, int]:
    """The number of the field at a place, and where its content begins and ends.

    Raises:
        MalformedError: there is none.

    """
    key, start = varint(data, at)
    match key & 7:
        case 0:
            _, end = varint(data, start)
        case 2:
            length, start = varint(data, start)
            end = start + length
        case 1 | 5 as fixed:
            end = start + FIXED[fixed]
        case other:
            raise MalformedError(f"no field at {at}: its kind is {other}")
    if end > len(data):
        raise MalformedError(f"the field at {at} ends at {end} of {len(data)} bytes")
    return key >> 3, start, end


def inner(message: bytes, *numbers: int) -> bytes:
    """A message within messages, by the fields that lead to it; empty where it is not.

    Raises:
        MalformedError: it is no message.

    """
    for number in numbers:
        content = fields(message).get(number, b"")
        message = content if isinstance(content, bytes) else b""
    return message


def repeated(message: bytes, number: int) -> Iterator[bytes]:
    """The contents of each field with this number.

    Raises:
        MalformedError: it is no message.

    """
    at = 0
    while at < len(message):
        found, start, at = field(message, at)
        if found == number:
            yield message[start:at]


def replaced(message: bytes, number: int, content: bytes) -> bytes:
    """The message with another content of one field.

    Raises:
        MalformedError: it is no message.

    """
    result, at = bytearray(), 0
    while at < len(message):
        found, _, end = field(message, at)
        result += packed(number, content) if found == number else message[at:end]
        at = end
    return bytes(result)


def packed(number: int, value: int | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
