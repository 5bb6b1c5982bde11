"""One function for each reader of bytes that others write: taken, or refused by an error of its own."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.archive import crypt, pipeline
from agent.archive.reader import ArchiveReader
from agent.base import protobuf
from agent.base.errors import AgentError
from agent.checkpoint import contents, criu, images, native
from agent.checkpoint.segments import SegmentWriter
from agent.doors.docker_model import Endpoint, Network
from agent.migration import admission, arrival, confinement, fitting, ports
from agent.network import identity
from agent.prework.container_log import FrameCheck
from agent.prework.tar import BLOCK, Limits
from agent.prework.unpack import apply
from agent.runtime import pages, restore
from protocol import peer, reading, status
from protocol.commands import Reply

LIMITS = Limits(entries=1000, data_bytes=8 << 20, file_size=8 << 20, header_bytes=64 << 10)
KEY = bytes(range(32))
UNTOUCHED = "untouched"


class WroteOutside(Exception):
    """The one thing that is worse than an exception."""


@dataclass(frozen=True)
class Target:
    """What is fed, with what it may answer."""

    name: str
    feed: Callable[[bytes, Path], None]
    refusals: tuple[type[Exception], ...] = (AgentError,)
    mend: Callable[[bytes], bytes] = field(default=bytes)
    """Makes right what chance never would: checksums."""
    in_folder: bool = False
    """It writes; then nothing outside of its folder may change."""

    def run(self, data: bytes) -> bool:
        """Whether it was taken; raises what is a finding."""
        data = self.mend(data)
        if not self.in_folder:
            return self._fed(data, Path())
        with _trap() as folder:
            return self._fed(data, folder)

    def _fed(self, data: bytes, folder: Path) -> bool:
        try:
            self.feed(data, folder)
        except self.refusals:
            return False
        return True


class _trap:  # noqa: N801 - used as a function
    """A folder with a way out, and something outside that has to stay as it is."""

    def __enter__(self) -> Path:
        self._base = Path(tempfile.mkdtemp(dir=_fast()))
        root = self._base / "root"
        for folder in (root, self._base / "outside", root / "dir"):
            folder.mkdir()
        (self._base / "outside/file").write_text(UNTOUCHED)
        (root / "file").write_text(UNTOUCHED)
        (root / "out").symlink_to("../outside")
        (root / "pages-9.img").symlink_to("../outside/file")
        return root

    def __exit__(self, *_: object) -> None:
        outside = self._base / "outside"
        try:
            alone = sorted(os.listdir(self._base)) == ["outside", "root"] and os.listdir(outside) == ["file"]
            if not alone or (outside / "file").read_text() != UNTOUCHED:
                raise WroteOutside(sorted(map(str, self._base.rglob("*"))))
        finally:
            shutil.rmtree(self._base)


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_loop: list[asyncio.AbstractEventLoop] = []


def _await(work: Any) -> Any:
    """One loop for all cases: making one takes longer than most of them."""
    if not _loop:
        _loop.append(asyncio.new_event_loop())
    return _loop[0].run_until_complete(work)


# --- tar


def checksummed(data: bytes) -> bytes:
    """With the right checksum in whatever looks like a header."""
    mended = bytearray(data)
    for at in range(0, len(mended) - BLOCK + 1, BLOCK):
        block = mended[at : at + BLOCK]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 256
            mended[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(mended)


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for piece in pieces_of(data, 700):
        yield piece


def tree(data: bytes, folder: Path) -> None:
    """A pass over a tree: what is written into a container's root file system."""
    rest = pieces_of(data, 1000)
    apply(str(folder), lambda _: next(rest, b""), devices=False, limits=LIMITS)


async def _archive(data: bytes) -> None:
    reader = ArchiveReader(_chunks(data))
    await reader.manifest()
    await reader.finish()


async def _members(data: bytes) -> None:
    reader = ArchiveReader(_chunks(data))
    while (member := await reader.next()) is not None:
        if member.size < 1 << 20:
            await reader.json()


def archive(data: bytes, _: Path) -> None:
    """A checkpoint's archive, manifest and hashes; and then whatever tar it is."""
    taken = 0
    for way in (_archive, _members):
        with suppress(AgentError):
            _await(way(data))
            taken += 1
    if not taken:
        raise AgentError("neither")


def segments(data: bytes, folder: Path) -> None:
    """CRIU's images as they come while they are written."""
    writer = SegmentWriter(folder, limit=1 << 20)
    try:
        for piece in pieces_of(data, 333):
            writer.feed(piece)
        writer.finish()
    except OSError as error:  # as arrival.take_segments has it
        raise AgentError(str(error)) from None
    finally:
        writer.close()


# --- streams


def packed_archive(data: bytes, _: Path) -> None:
    """Whatever an archive is compressed with."""
    rest = pieces_of(data, 100)
    size = 0
    for piece in pipeline._inflated(lambda: next(rest, b"")):
        size += len(piece)
        if size > 64 << 20:
            return


def sealed(data: bytes, _: Path) -> None:
    rest = bytearray(data)

    def read(length: int) -> bytes:
        found = bytes(rest[:length])
        del rest[:length]
        return found

    opener = crypt.Opener(read, KEY)
    while opener.chunk():
        pass


def frames(data: bytes, _: Path) -> None:
    """What a container has printed, as the runtime will print it again."""
    check = FrameCheck()
    for piece in pieces_of(data, 7):
        check.feed(piece)
    check.finish()


class _Nobody(asyncio.StreamWriter):
    """The way back to the peer: it takes everything."""

    def __init__(self) -> None:
        """Without a transport: nothing is sent."""

    def write(self, data: Any) -> None:
        pass

    def writelines(self, data: Any) -> None:
        pass

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def __del__(self) -> None:
        pass


async def _pages(data: bytes) -> None:
    reader = asyncio.StreamReader(limit=pages.LARGEST)
    reader.feed_data(data)
    reader.feed_eof()
    stream = pages.Stream(None)  # type: ignore[arg-type] - nothing is handed on
    stream._unacked.append((0, b"x" * 100))
    stream.taken = 100
    await stream.over(reader, _Nobody())


def page_channel(data: bytes, _: Path) -> None:
    """Frames of the other end of a page channel."""
    _await(_pages(data))


# --- CRIU's images


LIVE = protobuf.packed(1, 1) + protobuf.packed(criu.TASK, protobuf.packed(criu.STATE, 1))
GOOD = {images.FILES: b"", "pstree.img": protobuf.packed(1, 1) + protobuf.packed(5, 1), "core-1.img": LIVE}


def criu_images(data: bytes, folder: Path) -> None:
    """The images that are read before a restore: which file is which says the first byte."""
    head = images.MAGIC.pack(criu.COMMON_MAGIC, 0x50273030)
    for name, content in GOOD.items():
        entry = images.SIZE.pack(len(content)) + content if content else b""
        (folder / name).write_bytes(head + entry)
    names = [images.FILES, "tcp-stream-1.img", "pstree.img", "core-1.img"]
    (folder / names[data[0] % len(names) if data else 0]).write_bytes(data[1:])
    images.mend(folder)
    native.start_stack_of(data[1:])
    criu.tasks_in(folder)


def of_a_tmpfs(data: bytes, folder: Path) -> None:
    """What is in a tmpfs, as it is taken out of gzip for the restore."""
    name = "tmpfs-dev-7.tar.gz.img"
    (folder / name).write_bytes(data)
    (folder / contents.READY).mkdir()
    contents.unpack(folder, folder)
    if not (folder / contents.READY / name).exists():
        raise AgentError("it is left to GNU tar")


def message(data: bytes, _: Path) -> None:
    protobuf.fields(data)


# --- messages


def command(data: bytes, _: Path) -> None:
    """What comes over MQTT: commands, and what other hosts say."""
    taken = 0
    for read in (
        reading.read_command,
        lambda said: reading.read(status.HostStatus, said),
        lambda said: reading.read(status.DecisionNotice, said),
        lambda said: reading.read(Reply, said),
    ):
        with suppress(reading.Unreadable):
            read(data)
            taken += 1
    if not taken:
        raise reading.Unreadable(reading._bad("none of them"))


IPAM = {"Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1"}]}
HERE = Network("n", "other", "bridge", "local", (Endpoint("ep-1", "other", ("10.1.0.3/24",)),), {"IPAM": IPAM})


def offer(data: bytes, _: Path) -> None:
    """An offer, and all that is thought about it before anything is touched."""
    found = peer.Offer.model_validate_json(data)
    admission.needs(found, arrival.image_room(found), 0)
    list(admission._hardware(found))
    ports.published(found.create)
    ports.listening(found.listening)
    confinement.against(found.create, found.engine, found.engine, ())
    body = fitting.fit_networks(found, {wanted.name: HERE for wanted in found.networks}).create
    for version in ("1.45", "1.51"):
        fitting.fit_engine(body, version)
    ports.remapped(body, ports.published(body))
    for network in found.networks:
        fitting.network_here(found, network, (HERE,))
        lines = identity.stand_in(network.addresses) + identity.stand_down(network.addresses)
        _check_lines(lines, ("link ", "addr ", "route "))
    sysctls = fitting.host_config(found.create).get("Sysctls") or {}
    for of_interfaces in (True, False):
        _check_lines(restore.settings(sysctls, of_interfaces=of_interfaces), ("printf ",))


def _check_lines(text: str, begin: tuple[str, ...]) -> None:
    """What is run as root has no line that was not meant."""
    for line in text.splitlines():
        if line and not line.startswith(begin):
            raise WroteOutside(line)


PEER = (peer.NativeOffer, peer.Manifest, peer.Answer, peer.Prepared, peer.Running, peer.SentPart, peer.Decision)


def peer_message(data: bytes, _: Path) -> None:
    """Each other message of a peer."""
    taken = 0
    for model in PEER:
        with suppress(ValidationError):
            model.model_validate_json(data)
            taken += 1
    if not taken:
        raise AgentError("none of them")


BROKEN = (pages.Broken, asyncio.IncompleteReadError)
TARGETS = {
    target.name: target
    for target in (
        Target("tree", tree, mend=checksummed, in_folder=True),
        Target("archive", archive, mend=checksummed),
        Target("segments", segments, mend=checksummed, in_folder=True),
        Target("compressed", packed_archive),
        Target("sealed", sealed),
        Target("frames", frames),
        Target("pages", page_channel, BROKEN),
        Target("criu-images", criu_images, in_folder=True),
        Target("tmpfs", of_a_tmpfs, in_folder=True),
        Target("protobuf", message, (protobuf.MalformedError,)),
        Target("command", command, (reading.Unreadable,)),
        Target("offer", offer, (ValidationError, AgentError)),
        Target("peer-message", peer_message),
    )
}
__all__ = ["TARGETS", "Target", "WroteOutside"]
