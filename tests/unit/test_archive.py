"""The archive on its own: what is written is read again, and whatever is not as it was written is refused."""

import asyncio
import io
import os
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.archive import crypt, layout, pipeline
from agent.archive.pipeline import Compression, Output
from agent.archive.reader import ArchiveReader
from agent.archive.writer import ArchiveWriter
from agent.base.errors import AgentError, CorruptPart, Refused, StepFailed
from tests.unit.made_archive import archive

KEY = bytes(range(32))


async def chunked(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read_all(data: bytes) -> dict[str, bytes]:
    """Every member, with the hashes compared."""
    reader, found = ArchiveReader(chunked(data)), {}
    while (member := await reader.peek()) is not None and member.name != layout.HASHES:
        await reader.next()
        found[member.name] = b"".join([piece async for piece in reader.content()])
    await reader.finish()
    return found


MEMBERS = {
    "config.dump": b"{}",
    "checkpoint/pages-1.img": os.urandom(70_000),
    "deep/" + "x" * 200: b"long name",
    "e": b"",
}


async def test_what_is_written_is_read_again() -> None:
    assert await read_all(await archive(MEMBERS)) == MEMBERS


async def test_other_programs_can_read_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(await archive(MEMBERS))) as found:
        assert [each.name for each in found] == [*MEMBERS, layout.HASHES]
        assert all(each.mode == 0o600 for each in found)


@pytest.mark.parametrize("cut", [1, 500, 1024, 1600, 3000])
async def test_one_that_was_cut_off_is_refused(cut: int) -> None:
    data = await archive(MEMBERS)
    with pytest.raises(CorruptPart):
        await read_all(data[: -1024 - cut])


@settings(max_examples=60, deadline=None)
@given(at=st.integers(min_value=0, max_value=10_000), bit=st.integers(min_value=0, max_value=7))
async def test_one_changed_bit_is_noticed_or_means_nothing(at: int, bit: int) -> None:
    """A bit in a header's time or mode is nobody's; every other one is noticed."""
    data = bytearray(await archive({"a": b"A" * 3000, "b": b"B" * 600}))
    at %= len(data)
    data[at] ^= 1 << bit
    try:
        found = await read_all(bytes(data))
    except (CorruptPart, Refused):
        return
    assert found == {"a": b"A" * 3000, "b": b"B" * 600}


async def test_a_member_that_was_added_is_noticed() -> None:
    data = await archive({"a": b"1"})
    more = io.BytesIO()
    with tarfile.open(fileobj=more, mode="w") as tar:
        info = tarfile.TarInfo("b")
        tar.addfile(info)
    with pytest.raises(CorruptPart, match="put into the archive afterwards"):
        await read_all(more.getvalue()[:512] + data)


async def test_a_member_that_was_taken_out_is_noticed() -> None:
    data = await archive({"a": b"1", "b": b"2"})
    with pytest.raises(CorruptPart, match="a is missing"):
        await read_all(data[1024:])


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return made.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        hostile("../up"),
        hostile("a/../../up"),
        hostile("/etc/passwd"),
        hostile("a//b"),
        hostile("./a/./b"),
        hostile("checkpoint/parent", tarfile.SYMTYPE, "/"),
        hostile("checkpoint", tarfile.SYMTYPE, "/etc"),
        hostile("a", tarfile.LNKTYPE, "/etc/shadow"),
        hostile("a", tarfile.CHRTYPE),
        hostile("a", tarfile.FIFOTYPE),
        hostile("a") * 2,
    ],
)
async def test_a_member_that_leads_elsewhere_is_refused(data: bytes) -> None:
    # without tarfile's end marks, so that what follows is seen
    with pytest.raises(CorruptPart):
        await read_all(data.replace(bytes(1024), b"") + bytes(1024) if data.count(b"ustar") > 1 else data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
async def test_bytes_that_are_no_archive_are_refused(data: bytes) -> None:
    with pytest.raises((CorruptPart, Refused)):
        await ArchiveReader(chunked(data)).manifest()


async def test_a_manifest_of_another_version_is_refused() -> None:
    reader = ArchiveReader(chunked(await archive({layout.MANIFEST: b'{"version": 2}'})))
    with pytest.raises(CorruptPart, match="not understood"):
        await reader.manifest()


async def test_an_archive_of_another_program_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="not an archive that transship has written"):
        await ArchiveReader(chunked(await archive({"config.dump": b"{}"}))).manifest()


async def test_a_member_that_grows_while_it_is_read_fails_the_archive() -> None:
    async def nowhere(_: bytes) -> None: ...

    with pytest.raises(StepFailed, match="changed while"):
        await ArchiveWriter(nowhere).member("a", 10, chunked(b"x" * 11))


async def test_pieces_of_a_stream_come_in_their_order() -> None:
    written: list[bytes] = []

    async def put(chunk: bytes) -> None:
        written.append(chunk)

    content = os.urandom(9 << 20)
    writer = ArchiveWriter(put)
    await writer.pieces("layers/", chunked(content, 300_000))
    await writer.close()
    found = await read_all(b"".join(written))
    assert list(found) == ["layers/000000", "layers/000001", "layers/000002"]
    assert b"".join(found.values()) == content


# --- compression and sealing ---


async def packed(data: bytes, compression: Compression, key: bytes | None, path: str) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    output = Output(fd, compression, key)
    async for chunk in chunked(data, 50_000):
        await output.put(chunk)
    await output.finish()
    os.close(fd)
    return Path(path).read_bytes()


async def unpacked(path: str, key: bytes | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join([chunk async for chunk in pipeline.read(fd, key)])
    finally:
        os.close(fd)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
async def test_a_reader_finds_out_how_it_was_packed(
    compression: Compression, key: bytes | None, tmp_path: object
) -> None:
    data = b"abc" * 100_000 + os.urandom(100_000)
    path = f"{tmp_path}/archive"
    raw = await packed(data, compression, key, path)
    assert await unpacked(path, key) == data
    if key is not None:
        assert b"abcabc" not in raw


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
async def test_a_packed_archive_that_was_cut_off_is_refused(compression: Compression, tmp_path: object) -> None:
    path = f"{tmp_path}/archive"
    raw = await packed(os.urandom(300_000), compression, None, path)
    for end in (len(raw) - 1, len(raw) // 2):
        Path(path).write_bytes(raw[:end])
        with pytest.raises(CorruptPart):
            await unpacked(path)


async def test_a_sealed_archive_needs_its_key(tmp_path: object) -> None:
    path = f"{tmp_path}/archive"
    await packed(b"secret", "none", KEY, path)
    with pytest.raises(Refused, match="sealed"):
        await unpacked(path)
    with pytest.raises(Refused, match="another key"):
        await unpacked(path, bytes(32))
    with pytest.raises(Refused, match="at least 16"):
        await packed(b"secret", "none", b"short", path)


def sealed(data: bytes) -> bytes:
    out: list[bytes] = []
    sealer = crypt.Sealer(out.append, KEY)
    sealer.write(data)
    sealer.close()
    return b"".join(out)


def opened(data: bytes) -> bytes:
    opener, found = crypt.Opener(io.BytesIO(data).read, KEY), b""
    while chunk := opener.chunk():
        found += chunk
    return found


SEALED_SIZE = crypt.CHUNK + crypt.TAG_BYTES + 4
HEAD = len(crypt.MAGIC) + crypt.SALT_BYTES


@pytest.mark.parametrize("length", [0, 1, crypt.CHUNK - 1, crypt.CHUNK, crypt.CHUNK + 1, 2 * crypt.CHUNK])
def test_sealed_bytes_are_opened_again(length: int) -> None:
    data = os.urandom(length)
    assert opened(sealed(data)) == data


def test_two_seals_of_the_same_have_nothing_in_common() -> None:
    assert sealed(b"x" * 100)[HEAD:] != sealed(b"x" * 100)[HEAD:]


def test_chunks_can_not_be_left_out_swapped_or_taken_from_another_archive() -> None:
    data = os.urandom(3 * crypt.CHUNK)
    good = sealed(data)
    head, rest = good[:HEAD], good[HEAD:]
    chunks = [rest[at : at + SEALED_SIZE] for at in range(0, len(rest), SEALED_SIZE)]
    other = sealed(data)[HEAD : HEAD + SEALED_SIZE]
    for wrong in (
        chunks[:-1],
        chunks[1:],
        [chunks[1], chunks[0], *chunks[2:]],
        [other, *chunks[1:]],
        [*chunks, chunks[0]],
    ):
        with pytest.raises(AgentError):
            opened(head + b"".join(wrong))


@settings(max_examples=100, deadline=None)
@given(at=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_bit_of_a_sealed_archive_can_be_changed(at: int, bit: int) -> None:
    data = bytearray(sealed(b"some words" * 20))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(AgentError):
        opened(bytes(data))


async def test_a_few_bytes_that_stand_for_very_many_come_in_small_chunks(tmp_path: object) -> None:
    path = f"{tmp_path}/archive"
    raw = await packed(bytes(64 << 20), "zstd", None, path)
    assert len(raw) < 1 << 16
    fd = os.open(path, os.O_RDONLY)
    try:
        assert max([len(chunk) async for chunk in pipeline.read(fd)]) <= pipeline.CHUNK
    finally:
        os.close(fd)


@pytest.mark.parametrize("way", ["put", "read"])
async def test_a_cancel_leaves_no_thread_at_a_pipe(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another file's as soon as it is closed."""
    waits, waiting, there = pipeline._Descriptor.wait, threading.Event(), []

    def wait(self: Any, event: int, what: str) -> None:
        there.append(what)
        waiting.set()
        try:
            waits(self, event, what)
        finally:
            there.pop()

    monkeypatch.setattr(pipeline._Descriptor, "wait", wait)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    async def stall() -> None:
        if way == "put":
            await Output(writer, "none").put(bytes(1 << 20))
        async for _ in pipeline.read(reader):
            pass

    try:
        task = asyncio.create_task(stall())
        assert await asyncio.to_thread(waiting.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert there == []
    finally:
        os.close(reader)
        os.close(writer)
