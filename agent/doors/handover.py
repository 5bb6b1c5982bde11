"""The agent's side of a hand-over folder: laid out before dockerd calls the runtime, cleared when the move has ended.

What lies where is in agent/runtime/handover.py. The folder must outlive the container it belongs to: while it is there,
a `create` of that container can only become a restore, never a cold start.
"""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.base.errors import StepFailed
from agent.base.shell import Shell
from agent.base.tasks import readable
from agent.checkpoint import contents, grace, images, proc
from agent.checkpoint.criu import CriuOptions
from agent.doors import tmpfs
from agent.doors.restore_scripts import put_scripts, put_wrapper
from agent.prework.container_log import FrameCheck
from agent.prework.ids import IdMap, IdRange
from agent.runtime import handover

ROOT = "criu-root"
"""What runc calls the root file system that it binds for CRIU."""
CRIU_END_SECONDS = 10.0
MOST_PRINTED = 64 << 20
"""On the tmpfs, beside the images."""

FIFOS = (handover.GO, handover.EVENTS, handover.ARMED, handover.CRIU, handover.MADE, handover.HELD, handover.RELEASE)


@dataclass(frozen=True, slots=True)
class StagedInfo:
    """What the waiting runtime has found in its bundle."""

    pid: int
    bundle: Path
    root: Path
    network_attached_early: bool
    ids: IdMap
    """How ids in the container stand on this host's disk."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """How `runc restore` went: it holds the tasks, or has failed. Times of day in seconds."""

    code: int
    pid: int
    """The container's first process; 0 where it failed."""
    runc: int
    """The process of runc, which ends when the tasks run."""
    began: float
    ended: float


class HandOver:
    """One container's folder."""

    def __init__(self, shell: Shell, container_id: str) -> None:
        self._shell = shell
        self.path = Path(handover.folder(container_id))
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._fd = -1
        self._open: dict[str, int] = {}
        self._rest = b""

    @property
    def images(self) -> Path:
        return self.path / handover.IMAGES

    @property
    def work(self) -> Path:
        return self.path / handover.WORK

    @property
    def lazy(self) -> Path:
        return self.path / handover.LAZY

    def hold_back_from_lazy(self) -> None:
        """Have CRIU's lazy-pages daemon wait for its first image, which is a fifo: it ends if this agent does."""
        self.lazy.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.lazy / handover.INVENTORY, 0o600)
        self._open[handover.LAZY] = os.open(self.lazy / handover.INVENTORY, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def give_to_lazy(self) -> None:
        """All images are there; blocks for a moment."""
        for image in self.images.iterdir():
            if image.name != handover.INVENTORY:
                with contextlib.suppress(FileExistsError):
                    (self.lazy / image.name).symlink_to(image)
        os.write(self._open[handover.LAZY], handover.for_fifo((self.images / handover.INVENTORY_THERE).read_bytes()))

    async def lay_out(
        self,
        *,
        image_bytes: int,
        options: CriuOptions,
        stand_in: list[str],
        sources: Mapping[str, Path],
        lazy: bool = False,
    ) -> None:
        """Make the folder, and a tmpfs in it for CRIU's images of at most `image_bytes`.

        Args:
            image_bytes: room for CRIU's images.
            options: for the restore.
            stand_in: addresses to put on lo before anything is restored.
            lazy: whether memory comes later, from a lazy-pages daemon in the work folder.
            sources: by place in the container, files to mount there in place of the engine's.

        """
        self.path.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.path.parent.chmod(0o700)
        for name in FIFOS:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self.path / name, 0o600)
        self.work.mkdir(exist_ok=True, mode=0o700)
        await tmpfs.mount(self._shell, self.images, image_bytes)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.images / handover.INVENTORY, 0o600)
        (self.path / handover.BIN).mkdir(exist_ok=True, mode=0o700)
        put_wrapper(self.path, self.path / contents.SCRIPTS)
        contents.put_script(self.path, contents.UNPACK, self.images)
        put_scripts(self.path, self.path, options, stand_in)
        # last, and whole: its existence is what makes the launcher restore
        part = self.path / (handover.PLAN + ".part")
        flags = ["--lazy-pages"] if lazy else []
        part.write_text(json.dumps({"flags": flags, "sources": {place: str(path) for place, path in sources.items()}}))
        part.rename(self.path / handover.PLAN)
        if (event := await asyncio.to_thread(grace.event)) >= 0:
            self._open["event"] = event  # while it is open, CRIU has its own at once
        self.listen()

    def without_stand_in(self) -> None:
        """The network will be there before the restore, so no address has to stand on lo."""
        (self.path / handover.ADDRESSES).write_text("")

    def stand_in(self) -> bool:
        """Whether addresses were put on lo."""
        with contextlib.suppress(OSError):
            return bool((self.path / handover.ADDRESSES).read_text())
        return False

    def turn_lazy(self) -> None:
        """Have a restore that waits already leave its missing memory to a lazy-pages daemon."""
        with (self.path / handover.CRIU_CONF).open("a") as file:
            file.write("lazy-pages\n")

    def finish_images(self) -> None:
        """All are there: what is done to them here, or CorruptPart where one is none; blocks for some milliseconds."""
        images.mend(self.images)
        contents.unpack(self.path, self.images)

    def give_images_to(self, ids: IdMap) -> None:
        give_images_to(self.images, ids)

    async def keep_printed(self, chunks: AsyncIterator[bytes]) -> None:
        """Frames of what the container has printed, for the runtime to print again.

        Raises:
            StepFailed: more than `MOST_PRINTED` bytes.
            CorruptPart: these are none.

        """
        size, frames = 0, FrameCheck()
        with (self.path / handover.LOG).open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MOST_PRINTED:
                    raise StepFailed(
                        f"the container printed more than {MOST_PRINTED >> 20} MiB during the move",
                        hint="move it when it is quieter",
                    )
                frames.feed(chunk)
                file.write(chunk)
        frames.finish()

    def listen(self) -> None:
        """Take in the runtime's events, from now on."""
        if self._fd < 0:
            # read-write, so that the fifo never reports an end
            self._fd = os.open(self.path / handover.EVENTS, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self._fd, 4096)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._events.put_nowait(line.decode())

    async def event(self) -> str:
        """The next word of the runtime: staged, printed, held or failed; the last two when `result` is there."""
        return await self._events.get()

    def arm(self) -> None:
        """Have runc and CRIU go on to where CRIU needs the images: `descriptors.json`, which runc reads, is there."""
        if not (self.path / handover.PASSED).exists():
            (self.path / handover.PASSED).touch(0o600)
            self._write(handover.ARMED, "armed")

    async def runtime_ended(self) -> None:
        """Wait until nobody can say anything any more of what was restored."""
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(self.staged().pid)
            try:
                await readable(ended)
            finally:
                os.close(ended)

    def say(self, word: str) -> None:
        """Tell the waiting runtime; kept in the fifo until it reads."""
        self._write(handover.GO, word)

    def release(self) -> None:
        """Let the held tasks run. The only place with this word in it."""
        self._write(handover.RELEASE, handover.RUN)

    def runs(self) -> None:
        """From here on it is a container like any other, also for `docker exec` and for a start of its own."""
        (self.path / handover.PLAN).unlink(missing_ok=True)

    def _write(self, fifo: str, word: str) -> None:
        if fifo not in self._open:  # kept open: a fifo that nobody has open forgets what was written
            self._open[fifo] = os.open(self.path / fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self._open[fifo], word.encode() + b"\n")

    def staged(self) -> StagedInfo:
        found = self._load(handover.STAGED)
        ids = IdMap(_ranges(found["uids"]), _ranges(found["gids"]))
        return StagedInfo(
            found["pid"], Path(found["bundle"]), Path(found["root"]), bool(found["network_attached_early"]), ids
        )

    def result(self) -> RestoreResult:
        found = self._load(handover.RESULT)
        return RestoreResult(found["code"], found["pid"], found["runc"], found["began"], found["ended"])

    def send_away(self) -> None:
        """Have whoever waits at a fifo for the runtime's word fail of it, and who would begin to: nobody will say it.

        The runtime does so itself where it is told to. One that was killed can't: an open fifo ends with it, but who
        comes to open one waits for the next writer, for ever.
        """
        for fifo in (self.path / handover.ARMED, self.images / handover.INVENTORY, self.lazy / handover.INVENTORY):
            with contextlib.suppress(OSError):
                if fifo.is_fifo():
                    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                    fifo.unlink()
                    os.close(writer)

    async def outcome(self, seconds: float) -> RestoreResult | None:
        """How the restore went, waiting for one that is under way; None where there was none, or the time is up."""
        with contextlib.suppress(TimeoutError, StepFailed):
            async with asyncio.timeout(seconds):
                while not (self.path / handover.RESULT).exists():
                    if not Path(f"/proc/{self.staged().pid}").exists():
                        return None
                    await asyncio.sleep(0.02)
                return self.result()
        return None

    def _load(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise StepFailed(f"the runtime has not written {name}: {error}") from error
        return found

    async def until_over(self, seconds: float = CRIU_END_SECONDS) -> None:
        """Wait for the end of runc and CRIU. Those that have just let the tasks go have a little to do yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await asyncio.to_thread(proc.criu_in, self.path):
                    await asyncio.sleep(0.02)

    async def clear(self) -> None:
        """Make sure that nothing of it is left."""
        await self.until_over()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        with contextlib.suppress(FileNotFoundError):
            (self.path / handover.PLAN).unlink()
        await self.unmount_all(killed=True)  # a runc that was killed meanwhile has left its mount for CRIU
        await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)

    async def unmount_all(self, *, killed: bool = False) -> None:
        """Make sure that nothing is mounted here; nor what runc has left mounted where it was killed.

        CRIU mounts its view of all cgroups in its work folder: nobody may delete through that. runc mounts the root
        file system in its own folder of the container: while it is there, containerd can't delete that.

        Raises:
            StepFailed: something is still mounted.

        """
        for path in self._mounted(killed):
            # it may be gone by now: CRIU cleans up too, when the tasks run
            await self._shell.run("umount", "--lazy", str(path), label="umount", check=False)
        if left := self._mounted(killed):
            raise StepFailed(f"{left[0]} can't be unmounted")

    def _mounted(self, killed: bool) -> list[Path]:
        """The outermost mounts; those below them go with them."""
        mounts = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
        theirs = (self.path.name, ROOT)
        ours = [each for each in mounts if each.is_relative_to(self.path) or (killed and each.parts[-2:] == theirs)]
        return [each for each in ours if not any(each != other and each.is_relative_to(other) for other in ours)]


def give_images_to(top: Path, ids: IdMap) -> None:
    """With userns-remap CRIU reads the images partly as the container's own root; nobody else has to.

    Partly: before the user namespace has its map it is the host's root without a capability, and needs to be the
    owner; afterwards it is the container's root, and in the group. Blocks for some microseconds a file.
    """
    gid = ids.gid_to_host(0)
    if not gid:
        return
    for folder, _, names in os.walk(top):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            os.chown(path, 0, gid)
            path.chmod(0o750 if path == Path(folder) else 0o640)


def _ranges(mappings: list[dict[str, int]]) -> tuple[IdRange, ...]:
    return tuple(IdRange(one["containerID"], one["hostID"], one["size"]) for one in mappings)
