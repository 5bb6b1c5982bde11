"""A tar that others have written, member by member as its bytes come. Follows and writes nothing."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from agent.base.errors import CorruptPart
from agent.prework.tar import BLOCK
from agent.prework.tar.read import check_block, octal, parse_pax

_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    size: int
    head: bytes
    """All of its headers, as they came."""
    flag: bytes = b"0"
    """The kind, as the header says it: b"0" a file, b"5" a folder."""

    @property
    def padded(self) -> int:
        return self.size + -self.size % BLOCK


@dataclass(slots=True)
class _Extended:
    """What the headers before a member's own say about it."""

    raw: list[bytes] = field(default_factory=list)
    name: str = ""
    size: int = -1

    def add(self, flag: bytes, head: bytes, body: bytes, size: int) -> None:
        self.raw += [head, body]
        if flag == b"L":
            self.name = body[:size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif flag == b"x":
            records = dict(parse_pax(body[:size]))
            self.name = records.get(b"path", b"").decode("utf-8", "surrogateescape")
            self.size = int(records[b"size"]) if records.get(b"size", b"").isdigit() else -1


async def members(source: "Source") -> AsyncIterator[Member]:
    """Each member; whoever iterates reads its content, padding included, before going on."""
    extended = _Extended()
    while True:
        block = await source.exactly(BLOCK)
        if not any(block):
            return
        check_block(block)
        size = _size(block[124:136])
        flag = block[156:157]
        if flag in (b"x", b"g", b"L", b"K"):
            if size > _MAX_HEADER_BYTES:
                raise CorruptPart("the tar has a header that is too big")
            extended.add(flag, block, await source.exactly(size + -size % BLOCK), size)
            continue
        name = extended.name or _name(block)
        size = extended.size if extended.size >= 0 else size
        yield Member(
            name.removeprefix("./").rstrip("/"), size, b"".join([*extended.raw, block]), flag.replace(b"\0", b"0")
        )
        extended = _Extended()


def _name(block: bytes) -> str:
    name, prefix = (
        field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") for field in (block[:100], block[345:500])
    )
    return f"{prefix}/{name}" if prefix and block[257:262] == b"ustar" else name


def _size(raw: bytes) -> int:
    """Octal, or what GNU and Go write for more than 8 GiB."""
    return int.from_bytes(raw[1:], "big") if raw[0] & 0x80 else octal(raw)


class Source:
    """Exact lengths out of chunks of any size."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._rest = memoryview(b"")

    async def pieces(self, length: int) -> AsyncIterator[bytes]:
        while length > 0:
            if not self._rest:
                self._rest = memoryview(await self._next())
                continue
            piece = bytes(self._rest[:length]) if length < len(self._rest) else bytes(self._rest)
            self._rest = self._rest[len(piece) :]
            length -= len(piece)
            yield piece

    async def exactly(self, length: int) -> bytes:
        return b"".join([piece async for piece in self.pieces(length)])

    async def drain(self) -> None:
        self._rest = memoryview(b"")
        async for _ in self._chunks:
            pass

    async def _next(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise CorruptPart("the tar stream was cut off", hint="The engine or the connection failed.") from None
