"""An archive, as a checkpoint writes it. No tests."""

from agent.archive.writer import ArchiveWriter


async def archive(members: dict[str, bytes]) -> bytes:
    """The plain tar of these."""
    written: list[bytes] = []

    async def put(chunk: bytes) -> None:
        written.append(chunk)

    writer = ArchiveWriter(put)
    for name, content in members.items():
        await writer.small(name, content)
    await writer.close()
    return b"".join(written)
