"""Tar bytes in, members out. Whoever wrote an archive is not trusted: names are checked, nothing is followed.

Members are files and folders, no links and no devices; no name comes twice, none leads out of the archive. Nothing is
written here: what becomes of a member is the caller's to say.
"""

import asyncio
import hashlib
import json
import posixpath
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import ValidationError

from agent.archive import layout
from agent.base.errors import CorruptPart, Refused
from agent.prework.tar.foreign import Member, Source, members
from protocol.base import WireModel
from protocol.errors import ErrorCode

M = TypeVar("M", bound=WireModel)

FILE, FOLDER = b"0", b"5"
MOST_MEMBERS = 1_000_000
MOST_NAME_BYTES = 4096
HASH_APART = 1 << 16


class ArchiveReader:
    """One archive, from its first member to its last. Content that is not asked for is hashed all the same."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._source = Source(chunks)
        self._members = members(self._source)
        self._hashes: dict[str, layout.MemberHash] = {}
        self._seen: set[str] = set()
        self._ahead: Member | None = None
        self._open: Member | None = None
        self._ended = False
        self.bytes = 0

    async def peek(self) -> Member | None:
        """The next member, which stays the next one; None at the end."""
        if self._ahead is None and not self._ended:
            await self._skip_rest()
            self._ahead = await self._next_file()
        return self._ahead

    async def next(self) -> Member | None:
        """Go on to the next member; its content may be read until this is called again."""
        member = await self.peek()
        self._open, self._ahead = member, None
        return member

    async def _next_file(self) -> Member | None:
        async for member in self._members:
            self._check(member)
            if member.flag == FILE:
                return member
        self._ended = True
        await self._source.drain()
        return None

    def _check(self, member: Member) -> None:
        name = member.name
        if member.flag not in (FILE, FOLDER):
            raise CorruptPart(f"the archive has a member that is neither file nor folder: {name!r}")
        if member.flag == FOLDER and member.size:
            raise CorruptPart(f"the archive has a folder with content: {name!r}")
        if member.flag == FOLDER and name in ("", "."):
            return
        unsafe = not name or name.startswith("/") or "\0" in name or len(name) > MOST_NAME_BYTES
        if unsafe or posixpath.normpath(name) != name or name.split("/")[0] == ".." or member.size < 0:
            raise CorruptPart(f"the archive has a member with a name that leads elsewhere: {name[:200]!r}")
        if name in self._seen:
            raise CorruptPart(f"the archive has two members of the name {name!r}")
        if len(self._seen) >= MOST_MEMBERS:
            raise CorruptPart("the archive has more members than any checkpoint can need")
        self._seen.add(name)

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the member that `next` has returned."""
        member = self._open
        if member is None:
            return
        self._open = None
        digest = hashlib.sha256()
        async for piece in self._source.pieces(member.size):
            if len(piece) > HASH_APART:
                await asyncio.to_thread(digest.update, piece)
            else:
                digest.update(piece)
            yield piece
        await self._source.exactly(member.padded - member.size)
        self.bytes += member.size
        self._hashes[member.name] = layout.MemberHash(name=member.name, sha256=digest.hexdigest(), bytes=member.size)

    def hash_of(self, name: str) -> layout.MemberHash:
        """Of a member that was read to its end."""
        return self._hashes[name]

    async def _skip_rest(self) -> None:
        async for _ in self.content():
            pass

    async def small(self, limit: int = layout.MOST_JSON_BYTES) -> bytes:
        """The content of a member that is small, or nothing good."""
        assert self._open is not None
        if self._open.size > limit:
            raise CorruptPart(f"{self._open.name} in the archive is larger than it can be")
        return b"".join([piece async for piece in self.content()])

    async def model(self, model: type[M]) -> M:
        """A member of our own.

        Raises:
            CorruptPart: it is not one.

        """
        assert self._open is not None
        name = self._open.name
        try:
            return model.model_validate_json(await self.small())
        except ValidationError as error:
            said = error.errors()[0]
            place = ".".join(map(str, said["loc"]))
            raise CorruptPart(f"{name} in the archive is not understood: {place}: {said['msg']}") from None

    async def json(self) -> Any:
        assert self._open is not None
        name = self._open.name
        try:
            return json.loads(await self.small())
        except (ValueError, RecursionError):
            raise CorruptPart(f"{name} in the archive is no JSON") from None

    async def manifest(self) -> layout.Manifest:
        """The first member.

        Raises:
            Refused: it is the archive of another program, or none at all.

        """
        try:
            first, why = await self.peek(), ""
        except CorruptPart as error:
            first, why = None, f": {error.message}"
        if first is None or first.name != layout.MANIFEST:
            raise Refused(
                ErrorCode.BAD_COMMAND,
                f"this is not an archive that transship has written{why}",
                hint="its first member would be " + layout.MANIFEST,
            )
        await self.next()
        return await self.model(layout.Manifest)

    async def finish(self) -> None:
        """Read to the end, and compare every member with what it was when it was written.

        Raises:
            CorruptPart: a member was changed, added or taken away, or the archive was cut off.

        """
        while (member := await self.next()) is not None:
            if member.name == layout.HASHES:
                self._compare(await self.model(layout.Hashes))
                if await self.next() is not None:
                    raise CorruptPart("the archive has members behind its hashes")
                return
        raise CorruptPart("the archive was cut off: its hashes are missing")

    def _compare(self, hashes: layout.Hashes) -> None:
        wanted = {member.name: member for member in hashes.members}
        found = {name: member for name, member in self._hashes.items() if name != layout.HASHES}
        for name in sorted(wanted.keys() | found.keys()):
            if name not in found:
                raise CorruptPart(f"{name} is missing from the archive")
            if name not in wanted:
                raise CorruptPart(f"{name} was put into the archive afterwards")
            if wanted[name] != found[name]:
                raise CorruptPart(f"{name} in the archive was changed")
