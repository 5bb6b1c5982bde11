"""Only the layers that the target lacks are sent, whichever image store is on either side."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.base.errors import CorruptPart
from agent.prework.layers import chain_ids, filtered, missing_layers, read_image_index, stored_blobs


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(name: str) -> str:
    return "blobs/sha256/" + name.removeprefix("sha256:")


LAYERS = [b"layer %d " % n + bytes(600 * n) for n in range(1, 5)]
DIFF_IDS = [digest(layer) for layer in LAYERS]


def save_stream(*, compressed: bool, layers: list[bytes] = LAYERS, pax: bool = False) -> bytes:
    """As dockerd makes it: blobs by name, then index.json, manifest.json, oci-layout."""
    stored = [gzip.compress(layer, mtime=0) if compressed else layer for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}}).encode()
    manifest = json.dumps(
        {"config": {"digest": digest(config)}, "layers": [{"digest": digest(s)} for s in stored]}
    ).encode()
    blobs = {digest(data): data for data in (*stored, config, manifest)}
    docker = [{"Config": blob(digest(config)), "RepoTags": ["x:1"], "Layers": [blob(digest(s)) for s in stored]}]
    members = [(blob(name), data) for name, data in sorted(blobs.items())]
    members += [("index.json", b"{}"), ("manifest.json", json.dumps(docker).encode()), ("oci-layout", b"{}")]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("blobs", "blobs/sha256"):
            directory = tarfile.TarInfo(name)
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if pax:
                member.pax_headers = {"comment": "x" * 700}
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


async def chunked(stream: bytes, step: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(stream), step):
        yield stream[start : start + step]


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def members(stream: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]


def test_chain_ids_are_those_of_the_specification() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_ids([]) == []
    assert chain_ids([one]) == [one]
    assert chain_ids([one, two])[1] == digest(f"{one} {two}".encode())


TABLE: list[tuple[str, list[str], list[list[str]], set[str]]] = [
    ("nothing there", ["a", "b"], [], {"a", "b"}),
    ("all there", ["a", "b"], [["a", "b"]], set()),
    ("base there", ["a", "b"], [["a"]], {"b"}),
    ("more there", ["a"], [["a", "b"]], set()),
    ("same layer on another base", ["a", "b"], [["c", "b"]], {"a", "b"}),
    ("base there, upper on another base", ["a", "b", "c"], [["a", "b"], ["x", "c"]], {"c"}),
    ("a layer that is at one of its two places", ["a", "b", "a"], [["a", "b"]], {"a"}),
    ("a layer that is at both of its places", ["a", "b", "a"], [["a", "b", "a", "d"]], set()),
]


@pytest.mark.parametrize(("wanted", "there", "missing"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_missing_layers_go_by_chain(wanted: list[str], there: list[list[str]], missing: set[str]) -> None:
    assert missing_layers(wanted, there) == missing


@pytest.mark.parametrize("compressed", [False, True])
async def test_index_knows_which_blob_is_which_layer(compressed: bool) -> None:
    stream = save_stream(compressed=compressed)
    index = await read_image_index(chunked(stream))
    assert [layer.diff_id for layer in index.layers] == DIFF_IDS
    assert [layer.size for layer in index.layers] == [len(members(stream)[blob(la.digest)]) for la in index.layers]
    assert ([layer.digest for layer in index.layers] == DIFF_IDS) is not compressed
    assert index.tags == ("x:1",)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pax", [False, True])
@pytest.mark.parametrize("step", [1, 511, 512, 1 << 20])
async def test_filtered_stream_lacks_exactly_what_is_there(compressed: bool, pax: bool, step: int) -> None:
    stream = save_stream(compressed=compressed, pax=pax)
    index = await read_image_index(chunked(stream))
    drop = index.droppable(missing_layers(DIFF_IDS, [DIFF_IDS[:2]]))
    assert len(drop) == 2
    rest = members(await collected(filtered(chunked(stream, step), drop)))
    assert rest == {name: data for name, data in members(stream).items() if name not in {blob(d) for d in drop}}


async def test_nothing_to_drop_changes_nothing() -> None:
    stream = save_stream(compressed=False)
    assert members(await collected(filtered(chunked(stream), set()))) == members(stream)


async def test_index_of_a_stream_whose_layers_were_left_out() -> None:
    stream = save_stream(compressed=False)
    rest = await collected(filtered(chunked(stream), {DIFF_IDS[1]}))
    index = await read_image_index(chunked(rest))
    assert [layer.size for layer in index.layers][1] == -1


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 5000])
async def test_cut_stream_is_an_error(cut: int) -> None:
    stream = save_stream(compressed=False)
    with pytest.raises(CorruptPart):
        await collected(filtered(chunked(stream[:cut]), set()))
    with pytest.raises(CorruptPart):
        await read_image_index(chunked(stream[:cut]))


@pytest.mark.parametrize(
    "manifest", [b"null", b"[]", b"[{}]", b"{", b'[{"Config": 7, "Layers": []}]', b'[{"Config": "c"}]']
)
async def test_image_without_a_usable_description_is_an_error(manifest: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (("manifest.json", manifest), ("c", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(CorruptPart):
        await read_image_index(chunked(out.getvalue()))


async def test_description_that_would_fill_the_memory_is_an_error() -> None:
    async def endless() -> AsyncIterator[bytes]:
        member = tarfile.TarInfo("blobs/sha256/x")
        member.size = 8 << 20
        for _ in range(100):
            yield member.tobuf()
            yield b"{" + bytes(member.size - 1)

    with pytest.raises(CorruptPart, match="more than"):
        await read_image_index(endless())


async def test_blob_of_more_than_8_gib_is_skipped_by_its_real_size() -> None:
    """Only the arithmetic: pax and GNU both have a way to say such a size."""
    size = (8 << 30) + 512
    zeros = bytes(1 << 20)

    for format_ in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):

        async def stream(format_: int = format_) -> AsyncIterator[bytes]:
            member = tarfile.TarInfo(blob("sha256:big"))
            member.size = size
            yield member.tobuf(format=format_)
            left = size
            while left:
                yield zeros[: min(left, len(zeros))]
                left -= min(left, len(zeros))
            yield bytes(1024)

        kept = 0
        async for piece in filtered(stream(), {"sha256:big"}):
            kept += len(piece)
        assert kept == 1024


@given(st.binary(max_size=3000), st.integers(1, 600))
@settings(max_examples=200, deadline=None)
async def test_garbage_is_corrupt_and_nothing_worse(data: bytes, step: int) -> None:
    for feed in (data, save_stream(compressed=False)[:2000] + data):
        try:
            await collected(filtered(chunked(feed, step), set()))
            await read_image_index(chunked(feed, step))
        except CorruptPart:
            pass


def test_stored_blobs_are_those_in_the_content_store(tmp_path: Path) -> None:
    def store(document: Any) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        (tmp_path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (tmp_path / blob(digest(data))).write_bytes(data)
        return digest(data)

    here, there = store(b"layer"), digest(b"elsewhere")
    manifest = store({"layers": [{"digest": here}, {"digest": there}]})
    index = store({"manifests": [{"digest": manifest}, {"digest": digest(b"other platform")}, {"digest": here}]})
    assert stored_blobs(tmp_path, [index]) == {here}
    assert stored_blobs(tmp_path, [manifest]) == {here}
    assert stored_blobs(tmp_path, ["sha256:../../../etc/passwd", digest(os.urandom(5))]) == set()
