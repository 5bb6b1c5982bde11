"""Which image layers the other host lacks, and a `docker save` stream without the rest.

What the two image stores of dockerd do (read in moby 28 and containerd 2, tried on Docker 26 and 28):

- The graph driver's store names a layer in the stream by its diff id (`blobs/sha256/HEX`, uncompressed).
  Its load looks up each layer by chain id first, and opens the layer's file only if that is unknown: so a
  layer may be left out of the stream exactly if the whole chain up to it is there.
- containerd's store names it by the digest of what it stores, mostly compressed; which diff id that is
  says the image's configuration, position by position. Its load keeps what comes and asks for nothing
  else. Tried: an image whose layer is there under another digest only even runs, since its snapshot is
  found by chain id; but it is "not available", its inspect is empty, and `docker save` gives nothing of
  it, so it could not be moved on. Towards such a target a blob may be left out only if that very blob
  is in its content store (`stored_blobs`).
"""

import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.base.errors import CorruptPart
from agent.prework.tar import BLOCK
from agent.prework.tar.foreign import Member, Source, members

_BLOBS = "blobs/sha256/"
_MAX_JSON_BYTES = 8 << 20
_MAX_KEPT_BYTES = 32 << 20
_MAX_MEMBERS = 100_000


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The name of each layer together with all below it, as the OCI image specification has it."""
    chain: list[str] = []
    for diff_id in diff_ids:
        below = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append("sha256:" + hashlib.sha256(below.encode()).hexdigest() if below else diff_id)
    return chain


def missing_layers(wanted: Sequence[str], target_images: Iterable[Sequence[str]]) -> set[str]:
    """The diff ids that have to be sent to a host with these images: those whose chain none of them has.

    The same layer may come twice in an image; it is missing if it is at any of its places.
    """
    there = {chain_id for diff_ids in target_images for chain_id in chain_ids(diff_ids)}
    return {diff_id for diff_id, chain in zip(wanted, chain_ids(wanted), strict=True) if chain not in there}


@dataclass(frozen=True, slots=True)
class LayerBlob:
    diff_id: str
    digest: str
    """Of the blob as it is in the stream: the diff id itself if it is not compressed."""
    size: int


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """What the JSON parts of a `docker save` stream say about its first image."""

    config_digest: str
    layers: tuple[LayerBlob, ...]
    tags: tuple[str, ...] = ()

    def blobs(self, diff_ids: AbstractSet[str]) -> set[str]:
        """The digests under which these layers are in the stream."""
        return {layer.digest for layer in self.layers if layer.diff_id in diff_ids}

    def droppable(self, missing: AbstractSet[str]) -> set[str]:
        """All but the missing layers, as `filtered` wants it, for a target with a graph driver."""
        return {layer.digest for layer in self.layers} - self.blobs(missing)


def stored_blobs(content: Path, manifests: Iterable[str]) -> set[str]:
    """The layer blobs of these images in a content store of containerd on this host.

    `content` is its folder (`io.containerd.content.v1.content` below containerd's root), `manifests` are image
    ids as dockerd has them with that store: digests of manifests, or of indexes of manifests.
    """
    found: set[str] = set()
    pending, seen = list(manifests), set[str]()
    while pending:
        digest = pending.pop()
        if digest in seen:
            continue
        seen.add(digest)
        document = _stored_json(content, digest)
        pending += [each["digest"] for each in document.get("manifests", ())]
        found |= {each["digest"] for each in document.get("layers", ())}
    return {digest for digest in found if _blob_path(content, digest).is_file()}


def _stored_json(content: Path, digest: str) -> dict[str, Any]:
    """Empty if it is not there: an index names manifests of platforms that nobody has fetched."""
    try:
        document = json.loads(_blob_path(content, digest).read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _blob_path(content: Path, digest: str) -> Path:
    return content / "blobs" / "sha256" / digest.removeprefix("sha256:").replace("/", "_")


async def filtered(chunks: AsyncIterable[bytes], drop: AbstractSet[str]) -> AsyncIterator[bytes]:
    """The stream without these blobs; everything else goes through as it is."""
    source = Source(chunks)
    async for member in members(source):
        wanted = _digest_of(member.name) not in drop
        if wanted:
            yield member.head
        async for piece in source.pieces(member.padded):
            if wanted:
                yield piece
    yield bytes(2 * BLOCK)
    await source.drain()


async def read_image_index(chunks: AsyncIterable[bytes]) -> ImageIndex:
    """Read a `docker save` stream to its end; only its JSON parts are kept."""
    source = Source(chunks)
    parts: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    kept = 0
    async for member in members(source):
        sizes[member.name] = member.size
        content = await _json_content(source, member)
        if content is not None:
            parts[member.name] = content
            kept += len(content)
        if kept > _MAX_KEPT_BYTES or len(sizes) > _MAX_MEMBERS:
            raise CorruptPart("an image is described by more than an image can need")
    await source.drain()
    try:
        return _image_index(parts, sizes)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptPart(f"the image stream lacks its description: {error!r}") from error


def _image_index(parts: dict[str, bytes], sizes: dict[str, int]) -> ImageIndex:
    manifest: dict[str, Any] = json.loads(parts["manifest.json"])[0]
    config = parts[manifest["Config"]]
    diff_ids: list[str] = json.loads(config)["rootfs"]["diff_ids"]
    layers = [
        # A layer that another store left out of its own stream has no size.
        LayerBlob(diff_id, _digest_of(name), sizes.get(name, -1))
        for diff_id, name in zip(diff_ids, manifest["Layers"], strict=True)
    ]
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    return ImageIndex(digest, tuple(layers), tuple(manifest.get("RepoTags") or ()))


def _digest_of(name: str) -> str:
    return "sha256:" + name.removeprefix(_BLOBS) if name.startswith(_BLOBS) else ""


async def _json_content(source: Source, member: Member) -> bytes | None:
    """The content if it may be JSON, None for everything else; it is read in either case."""
    pieces: list[bytes] = []
    wanted = 0 < member.size <= _MAX_JSON_BYTES
    async for piece in source.pieces(member.padded):
        if wanted and not pieces and piece[:1] not in (b"{", b"["):
            wanted = False
        if wanted:
            pieces.append(piece)
    return b"".join(pieces)[: member.size] if wanted else None
