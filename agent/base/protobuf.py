"""The little of protobuf that CRIU's statistics and Docker's local log need: varints, and fields by length."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it; IndexError where the data ends too early."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7


def fields(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message by number, the last of each: numbers, and strings, bytes and messages as bytes."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            found[key >> 3], at = varint(data, at)
        else:
            length, at = varint(data, at)
            found[key >> 3] = data[at : at + length]
            at += length
    return found


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
