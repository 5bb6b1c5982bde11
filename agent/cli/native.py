"""`transship native`: Docker's own checkpoints, on this host; no agent, no broker. Refused where they do not work."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.base.errors import Refused, RestoreFailed
from agent.base.tasks import within
from agent.checkpoint import native
from agent.checkpoint.external import Step
from agent.cli.external import Runner, docker_here, found_here
from agent.cli.output import OK, Out
from agent.doors import docker_checkpoints
from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from protocol.errors import ErrorCode

END_SECONDS = 60.0

Work = Callable[[Docker, Container], Awaitable[None]]


def _on(name: str, work: Work, *, must_work: bool = True) -> int:
    """With the container, and a daemon whose checkpoints can be started from."""

    async def run() -> None:
        async with docker_here() as docker:
            if must_work:
                version = (await docker.engine()).docker
                native.check_engine(version, experimental=await docker_checkpoints.is_experimental(docker))
            await work(docker, await found_here(docker, name))

    asyncio.run(run())
    return OK


def create(out: Out, container: str, name: str, *, leave_running: bool) -> int:
    async def work(docker: Docker, found: Container) -> None:
        if not leave_running:
            # dockerd takes the end for a failure, and starts a second one by its policy
            await docker.set_restart_policy(found.id, {"Name": "no"})
        try:
            await docker_checkpoints.create(docker, found.id, name, leave_running=leave_running)
            if not leave_running:
                async with within(END_SECONDS, "the container's end"):  # before its policy is back: else it is started
                    await docker.wait_exit(found.id)
        finally:
            if not leave_running:
                await docker.set_restart_policy(found.id, dict(found.restart_policy))
        out.say(f"{name} of {container} is taken; it {'runs on' if leave_running else 'is stopped'}")

    return _on(container, work)


def show(out: Out, container: str) -> int:
    async def work(docker: Docker, found: Container) -> None:
        names = await docker_checkpoints.names(docker, found.id)
        if out.as_json:
            out.item({"container": container, "checkpoints": names})
        else:
            out.table(("CHECKPOINT",), [(name,) for name in names], empty="no checkpoints")

    return _on(container, work, must_work=False)


def remove(out: Out, container: str, name: str) -> int:
    async def work(docker: Docker, found: Container) -> None:
        await docker_checkpoints.remove(docker, found.id, name)
        out.say(f"{name} of {container} is removed")

    return _on(container, work, must_work=False)


def start(out: Out, container: str, name: str) -> int:
    """Start from a checkpoint; what turns out to be a cold start is ended again."""

    async def work(docker: Docker, found: Container) -> None:
        if found.running:
            raise Refused(ErrorCode.BUSY, f"{container} runs: dockerd would say yes, and restore nothing")
        try:
            image = (await _folder(docker, found) / name / native.MM).read_bytes()
        except OSError as error:
            raise Refused(
                ErrorCode.NO_SUCH_CHECKPOINT,
                f"{container} has no checkpoint {name}: {error.strerror}",
                hint=f"`transship native ls {container}` lists them",
            ) from None
        await docker_checkpoints.start(docker, found.id, name)
        now = await docker.inspect(found.id)
        if not now.running:
            raise RestoreFailed(f"{container} has ended as soon as it was started from {name}")
        if not native.is_restored(native.stat_of(now.pid), image):
            await docker.kill(found.id)
            raise RestoreFailed(f"{container} was started anew, not from {name}, and is ended", hint=native.OTHER_WAY)
        out.say(f"{container} goes on from {name}")

    return _on(container, work)


async def _folder(docker: Docker, found: Container) -> Path:
    return Path(await docker.data_root()) / "containers" / found.id / "checkpoints"


# --- to another host ---


def save(out: Out, container: str, name: str, file: Path, *, verbose: bool) -> int:
    """Checkpoint and writable layer as a tar, for the same container on another host."""

    async def work(docker: Docker, found: Container) -> None:
        layer, folder = upper(found), await _folder(docker, found)
        if found.running:
            raise Refused(ErrorCode.BUSY, f"{container} runs: its files are not those of the checkpoint any more")
        if not (folder / name).is_dir():
            raise Refused(ErrorCode.NO_SUCH_CHECKPOINT, f"{container} has no checkpoint {name}")
        words = ("-C", str(folder.parent), f"checkpoints/{name}", "-C", str(layer.parent), layer.name)
        # CRIU's images and the layer's marks of what is deleted: nothing may be left out
        tar = ("sh", "-c", 'umask 077; exec "$0" "$@"', "tar", *TAR, "--create", f"--file={file}", *words)
        await Runner(verbose=verbose, dry_run=False).run([Step(tar)])
        out.say(f"{file}: {name} of {container}, for `transship native load` on a host with its image")

    return _on(container, work)


TAR = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")


def load(out: Out, container: str, file: Path, *, verbose: bool) -> int:
    """Into a container that was created from the same image, with the same options, and never started."""

    async def work(docker: Docker, found: Container) -> None:
        if found.state != "created":
            raise Refused(
                ErrorCode.BUSY,
                f"{container} is {found.state}: its own files would be written over",
                hint="`docker create` it anew, from the same image with the same options",
            )
        layer, folder = upper(found), await _folder(docker, found)
        tar = ("tar", *TAR, "--extract", f"--file={file.absolute()}")
        await Runner(verbose=verbose, dry_run=False).run(
            [
                Step((*tar, "-C", str(folder.parent), "checkpoints")),
                Step((*tar, "-C", str(layer.parent), layer.name)),
            ]
        )
        out.say(f"{container} can be started from " + " or ".join(await docker_checkpoints.names(docker, found.id)))

    return _on(container, work)


def upper(found: Container) -> Path:
    """The folder of the writable layer of a container that does not run."""
    driver = found.raw.get("GraphDriver") or {}
    place = (driver.get("Data") or {}).get("UpperDir")
    if not place:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"its writable layer is kept by {driver.get('Name') or 'the containerd image store'}",
            hint=native.OTHER_WAY,
        )
    return Path(place)
