"""Encryption at rest: a stream of sealed chunks that can't be read, changed, cut or reordered without the key.

    magic (16)  salt (16)  then chunks: length (4, of the sealed bytes), sealed bytes; the last is marked in its nonce

AES-256-GCM by a key that HKDF makes of the key file and the archive's own salt, so no nonce is ever used twice. A
chunk's nonce is its number and whether it is the last: a stream that was cut has no last chunk.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.base.errors import CorruptPart, Refused
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"transship-seal-1"
SALT_BYTES = 16
CHUNK = 1 << 16
TAG_BYTES = 16
LEAST_KEY_BYTES = 16
MOST_CHUNKS = 1 << 32
"""2^48 bytes; far below what GCM allows for one key."""


def check_key(key: bytes) -> bytes:
    """The key file's content.

    Raises:
        Refused: it is too short to be one.

    """
    if len(key) < LEAST_KEY_BYTES:
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"a key file has at least {LEAST_KEY_BYTES} bytes, this one {len(key)}",
            hint="make one with `head -c 32 /dev/urandom > FILE`",
        )
    return key


def _cipher(key: bytes, salt: bytes) -> "AESGCM":
    # imported when something is sealed: 6 MiB that an agent without a key never needs
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=MAGIC).derive(check_key(key)))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class Sealer:
    """Plain bytes in, sealed bytes out; `close` writes the end mark."""

    def __init__(self, write: Callable[[bytes], None], key: bytes) -> None:
        salt = os.urandom(SALT_BYTES)
        self._cipher = _cipher(key, salt)
        self._write = write
        self._head = MAGIC + salt
        self._pending = bytearray()
        self._number = 0
        write(self._head)

    def write(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) > CHUNK:  # the last one is held back, however full: it has to be marked
            self._seal(bytes(self._pending[:CHUNK]), last=False)
            del self._pending[:CHUNK]

    def close(self) -> None:
        self._seal(bytes(self._pending), last=True)

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._number, last), chunk, self._head)
        self._number += 1
        self._write(len(sealed).to_bytes(4, "big") + sealed)


class Opener:
    """Sealed bytes in by `read(n)` (fewer only at the end), plain chunks out.

    Raises:
        Refused: it is sealed with another key.
        CorruptPart: it was changed, or cut off.

    """

    def __init__(self, read: Callable[[int], bytes], key: bytes) -> None:
        self._read = read
        head = self._exactly(len(MAGIC) + SALT_BYTES)
        if not head.startswith(MAGIC):
            raise CorruptPart("this is not a sealed archive")
        self._head = head
        self._cipher = _cipher(key, head[len(MAGIC) :])
        self._number = 0
        self._ended = False

    def chunk(self) -> bytes:
        """The next plain bytes; b"" at the end."""
        while not self._ended:
            length = int.from_bytes(self._exactly(4), "big")
            if not TAG_BYTES <= length <= CHUNK + TAG_BYTES or self._number >= MOST_CHUNKS:
                raise CorruptPart("the archive was changed: a sealed chunk has a length that none can have")
            plain = self._open(self._exactly(length))
            if self._ended and self._read(1):
                raise CorruptPart("there is something behind the archive's end")
            if plain:
                return plain
        return b""

    def _open(self, sealed: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        for last in (False, True):
            try:
                plain = self._cipher.decrypt(_nonce(self._number, last), sealed, self._head)
            except InvalidTag:
                continue
            self._number += 1
            self._ended = last
            return plain
        if self._number == 0:
            raise Refused(ErrorCode.BAD_COMMAND, "the archive is sealed with another key, or was changed")
        raise CorruptPart("the archive was changed since it was sealed")

    def _exactly(self, length: int) -> bytes:
        found = self._read(length)
        if len(found) < length:
            raise CorruptPart("the sealed archive was cut off")
        return found
