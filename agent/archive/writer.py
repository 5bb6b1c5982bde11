"""Members in, tar bytes out, one after the other and never back. Every member is hashed; the hashes come last.

A tar says the size of a member before its bytes: whoever writes one has to know it, or gives pieces (`pieces`).
"""

import asyncio
import hashlib
import json
import tarfile
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

from agent.archive import layout
from agent.base.errors import StepFailed
from protocol.base import WireModel

PIECE = 4 << 20
HASH_APART = 1 << 16
"""Larger chunks are hashed in a thread: the event loop has other things to do."""


class ArchiveWriter:
    """One archive. `put` takes its bytes."""

    def __init__(self, put: Callable[[bytes], Awaitable[None]]) -> None:
        self._put = put
        self._hashes: list[layout.MemberHash] = []
        self._time = int(time.time())

    async def folder(self, name: str) -> None:
        """An entry for a folder. checkpointctl takes no archive without that of the images."""
        await self._put(self._header(name.rstrip("/"), 0, tarfile.DIRTYPE, 0o700))

    async def small(self, name: str, content: bytes) -> None:
        async def once() -> AsyncIterable[bytes]:
            yield content

        await self.member(name, len(content), once())

    async def json(self, name: str, content: WireModel | dict[str, Any] | list[Any]) -> None:
        text = content.model_dump_json() if isinstance(content, WireModel) else json.dumps(content)
        await self.small(name, text.encode())

    async def member(self, name: str, size: int, chunks: AsyncIterable[bytes]) -> None:
        """One member of exactly `size` bytes.

        Raises:
            StepFailed: there are more or fewer.

        """
        digest, count = hashlib.sha256(), 0
        await self._put(self._header(name, size, tarfile.REGTYPE, 0o600))
        async for chunk in chunks:
            count += len(chunk)
            if count > size:
                break
            if len(chunk) > HASH_APART:
                await asyncio.to_thread(digest.update, chunk)
            else:
                digest.update(chunk)
            await self._put(chunk)
        if count != size:
            raise StepFailed(f"{name} changed while it was written to the archive")
        if padding := -size % tarfile.BLOCKSIZE:
            await self._put(bytes(padding))
        self._hashes.append(layout.MemberHash(name=name, sha256=digest.hexdigest(), bytes=size))

    async def pieces(self, prefix: str, chunks: AsyncIterable[bytes]) -> None:
        """A stream of unknown length, as numbered members of at most a few megabytes."""
        pending, number = bytearray(), 0
        async for chunk in chunks:
            pending += chunk
            while len(pending) >= PIECE:
                await self.small(f"{prefix}{number:06d}", bytes(pending[:PIECE]))
                del pending[:PIECE]
                number += 1
        await self.small(f"{prefix}{number:06d}", bytes(pending))

    async def close(self) -> None:
        """The hashes, and the end."""
        await self.json(layout.HASHES, layout.Hashes(members=tuple(self._hashes)))
        await self._put(bytes(2 * tarfile.BLOCKSIZE))

    def _header(self, name: str, size: int, kind: bytes, mode: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.mode, info.mtime = size, kind, mode, self._time
        return info.tobuf(tarfile.PAX_FORMAT)
