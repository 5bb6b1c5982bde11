"""A registry as a store: a checkpoint is an image of one layer, the archive, with the annotations that others know.

skopeo carries the registry's protocol, with its own login (`skopeo login`). A registry wants to know a layer's digest
before its bytes: so, unlike everywhere else, the whole archive lies on this host's disk for a moment, as an OCI layout.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from agent.archive import pipeline
from agent.archive.pipeline import Compression, Output
from agent.base.errors import CommandFailed, CorruptPart, Refused, TransferFailed
from agent.base.shell import Shell
from agent.base.tasks import to_the_end
from protocol.checkpoint import CheckpointInfo
from protocol.errors import ErrorCode

SECONDS = 3600.0
"""For a transfer of any size to end."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYERS: Mapping[Compression, str] = {
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "none": "application/vnd.oci.image.layer.v1.tar",
}
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
TAG = re.compile(r"(?P<place>[^/]+/.+?)(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?")
MOST_JSON_BYTES = 4 << 20


def reference(store: str, tag: str) -> str:
    """`oci:REGISTRY/NAME[:TAG]` as skopeo takes it; `tag` where none is said.

    Raises:
        Refused: it names no registry.

    """
    match = TAG.fullmatch(store.removeprefix("oci:"))
    if match is None:
        raise Refused(ErrorCode.BAD_COMMAND, f"{store} names no registry", hint="as in oci:registry:5000/web:monday")
    return f"{match['place']}:{match['tag'] or tag}"


def tls(ref: str, insecure: tuple[str, ...], side: str) -> tuple[str, ...]:
    """The option by which skopeo speaks to a registry without TLS, where the settings name it."""
    return (f"--{side}-tls-verify=false",) if ref.partition("/")[0] in insecure else ()


async def copy(shell: Shell, *words: str) -> None:
    """`skopeo copy`, without a change to the image."""
    await shell.run("skopeo", "copy", "--quiet", "--preserve-digests", *words, label="skopeo", timeout=SECONDS)


class InRegistry:
    """A layout that is filled, and pushed when it is complete."""

    def __init__(
        self,
        shell: Shell,
        folder: Path,
        ref: str,
        insecure: tuple[str, ...],
        compression: Compression,
        annotations: Mapping[str, str],
    ) -> None:
        self.sealed = False
        self.shown = f"oci:{ref}"
        self._shell = shell
        self._ref = ref
        self._insecure = insecure
        self._folder = folder
        self._compression = compression
        self._annotations = annotations
        self._blobs = folder / "blobs/sha256"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs.mkdir(parents=True)
        folder.chmod(0o700)
        self._part = folder / "part"
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._output = Output(self._fd, compression)
        self._plain = hashlib.sha256()

    @property
    def size(self) -> int:
        return self._output.size

    async def put(self, chunk: bytes) -> None:
        await asyncio.to_thread(self._plain.update, chunk)
        await self._output.put(chunk)

    async def keep(self) -> None:
        """Return when the registry has taken all of it.

        Raises:
            TransferFailed: it has not.

        """
        await self._output.finish()
        await to_the_end(asyncio.to_thread(self._lay_out))
        options = tls(self._ref, self._insecure, "dest")
        try:
            await copy(self._shell, *options, f"oci:{self._folder}", f"docker://{self._ref}")
        except CommandFailed as error:
            raise TransferFailed(
                f"{self._ref} could not be pushed: {error.message}", hint=error.hint or HINT, detail=error.detail
            ) from error

    def _lay_out(self) -> None:
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._part.rename(self._blobs / digest)
        layer = {"mediaType": LAYERS[self._compression], "digest": f"sha256:{digest}", "size": self._output.size}
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{self._plain.hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self._blob(config)},
            "layers": [layer],
            "annotations": dict(self._annotations),
        }
        index = {"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, **self._blob(manifest)}]}
        (self._folder / "index.json").write_text(json.dumps(index))
        (self._folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def _blob(self, content: Mapping[str, Any]) -> dict[str, Any]:
        text = json.dumps(content).encode()
        digest = hashlib.sha256(text).hexdigest()
        (self._blobs / digest).write_bytes(text)
        return {"digest": f"sha256:{digest}", "size": len(text)}

    async def drop(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def note(self, info: CheckpointInfo) -> None:
        """The registry knows it by its annotations."""

    def close(self) -> None:
        os.close(self._fd)
        shutil.rmtree(self._folder, ignore_errors=True)


HINT = "`skopeo login` as root, if it wants to know who asks; checkpoints.insecure_registries names those without TLS"


class FromRegistry:
    """An image that is pulled into a layout, and read from there."""

    def __init__(self, shell: Shell, folder: Path, ref: str, insecure: tuple[str, ...]) -> None:
        self._shell = shell
        self._folder = folder
        self._ref = ref
        self._insecure = insecure

    async def read(self) -> AsyncIterator[bytes]:
        """Pull it, and read its one layer; skopeo has compared every digest."""
        self._folder.mkdir(parents=True, mode=0o700)
        options = tls(self._ref, self._insecure, "src")
        try:
            await copy(self._shell, *options, f"docker://{self._ref}", f"oci:{self._folder}")
        except CommandFailed as error:
            raise Refused(
                ErrorCode.NO_SUCH_CHECKPOINT,
                f"{self._ref} could not be pulled: {error.message}",
                hint=error.hint or HINT,
                detail=error.detail,
            ) from error
        fd = os.open(await asyncio.to_thread(self._layer), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            async for chunk in pipeline.read(fd):
                yield chunk
        finally:
            os.close(fd)

    def _layer(self) -> Path:
        try:
            [manifest] = json.loads(self._small(self._folder / "index.json"))["manifests"]
            layers = json.loads(self._small(self._blob(manifest["digest"])))["layers"]
            [layer] = layers
            return self._blob(layer["digest"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CorruptPart(f"{self._ref} is no image of a checkpoint: {error!r}") from None

    def _small(self, path: Path) -> bytes:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError("a description that is too large")
        return path.read_bytes()

    def _blob(self, digest: str) -> Path:
        match = DIGEST.fullmatch(digest)
        if match is None:
            raise ValueError(f"no digest: {digest!r}")
        return self._folder / "blobs/sha256" / match[1]

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
