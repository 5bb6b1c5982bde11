"""The program of `docker run --init`, which the engine mounts into a container from its own files.

Most of its memory is not in a dump: it is mapped from that file, so a restore needs the very same one, and engines
differ. It goes along, and is kept by its hash for as long as the host is up; containers run from it.
"""

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from agent.base.errors import CorruptPart

STORE = Path("/run/transship/init")
PLACE = "/sbin/docker-init"
"""Where the engine mounts it."""
PROGRAM = "docker-init"
MOST_BYTES = 64 << 20
CHUNK = 1 << 18


def digest_of(pid: int) -> str:
    """SHA-256 of the program, if it is what the container's first process runs; else empty."""
    running = Path(f"/proc/{pid}/exe")
    if running.readlink().name != PROGRAM:
        return ""
    with running.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def read(pid: int) -> AsyncIterator[bytes]:
    with Path(f"/proc/{pid}/exe").open("rb") as file:  # noqa: ASYNC230 - under a megabyte
        while chunk := file.read(CHUNK):
            yield chunk


def kept(digest: str) -> Path:
    return STORE / digest


async def keep(digest: str, chunks: AsyncIterator[bytes]) -> None:
    """Store it under its hash.

    Raises:
        CorruptPart: it is not what it should be.

    """
    # whoever restores as the root of a user namespace has to get there, too, and to no other of our folders
    STORE.mkdir(parents=True, exist_ok=True)
    STORE.parent.chmod(0o711)
    STORE.chmod(0o755)
    part = STORE / f".{digest}.{os.urandom(4).hex()}"
    found, size = hashlib.sha256(), 0
    try:
        with part.open("xb") as file:
            async for chunk in chunks:
                found.update(chunk)
                size += len(chunk)
                if size > MOST_BYTES:
                    break
                file.write(chunk)
        if found.hexdigest() != digest:
            raise CorruptPart(f"the program {PROGRAM} is not the one that was promised")
        part.chmod(0o755)
        part.rename(kept(digest))
    finally:
        part.unlink(missing_ok=True)
