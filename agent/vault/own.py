"""Docker's own checkpoints (`engine: native`): taken, started from with a proof, carried to another host.

Whatever dockerd would let pass without a word is refused or found out here: a daemon that can't start from them, a
start of a running container, a second one that the restart policy starts, a "restore" that was a cold start. Used by
the command line on the host itself, and by the agent for commands that come over MQTT.
"""

from pathlib import Path

from agent.base.errors import Refused, RestoreFailed, StepFailed
from agent.base.tasks import to_the_end, within
from agent.checkpoint import freezer, native
from agent.doors import docker_checkpoints
from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from agent.migration import kept
from agent.migration.kept import Kept
from protocol.errors import ErrorCode

END_SECONDS = 60.0
TAR = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
"""CRIU's images, and the layer's marks of what is deleted: nothing may be left out."""


async def check_engine(docker: Docker) -> None:
    """Whether this daemon can start from its own checkpoints.

    Raises:
        Refused: it can't, or does not offer it; names the way that works.

    """
    version = (await docker.engine()).docker
    native.check_engine(version, experimental=await docker_checkpoints.is_experimental(docker))


async def create(docker: Docker, state: Path, found: Container, name: str, *, leave_running: bool) -> None:
    """Take one. A container that is stopped by it is not started by its restart policy, now or later.

    Raises:
        Refused: it does not run, or the daemon can't start from its own.

    """
    await check_engine(docker)
    if not found.running:
        raise Refused(ErrorCode.NOT_RUNNING, f"{found.name} is {found.state}, not running")
    if name in await docker_checkpoints.names(docker, found.id):
        raise Refused(ErrorCode.NAME_TAKEN, f"{found.name} has a checkpoint {name} already")
    if leave_running:
        await docker_checkpoints.create(docker, found.id, name, leave_running=True)
    else:
        await _create_and_end(docker, state, found, name)


async def _create_and_end(docker: Docker, state: Path, found: Container, name: str) -> None:
    """Frozen, not dead, until dockerd has all of it: it copies the memory several times after the dump, and where that
    fails it would have ended the container for nothing.
    """
    group = freezer.cgroup_of(found.pid)
    kept.keep(state, found.id, Kept(kept.policy_of(state, found), found.started_at, kept.me()))
    try:
        await docker.set_restart_policy(found.id, {"Name": "no"})  # dockerd takes the end for a failure
        await docker.pause(found.id)  # by dockerd, or containerd would try to
        await docker_checkpoints.create(docker, found.id, name, leave_running=True)
        if not group.is_frozen():
            await docker_checkpoints.remove(docker, found.id, name)
            raise StepFailed(f"{found.name} was unpaused by somebody while its checkpoint was taken: it is of no use")
    except BaseException:
        # no deadline: as long as a CRIU has it, to go on would ruin it, and a cancel must come out as one
        kept.give_up(state, found.id)  # where dockerd is away just now, the agent sees to it when that is back
        await to_the_end(kept.until_given_back(docker, state, found.id))
        raise
    await to_the_end(_end(docker, found, group))


async def _end(docker: Docker, found: Container, group: freezer.Cgroup) -> None:
    await freezer.kill_frozen(group)
    async with within(END_SECONDS, "the container's end"):
        await docker.wait_exit(found.id)


async def start(docker: Docker, state: Path, found: Container, name: str) -> None:
    """Start a stopped container from one; what turns out to be a cold start is ended again.

    Raises:
        Refused: it runs, or has none of that name.
        RestoreFailed: it was no restore, or has ended at once.

    """
    await check_engine(docker)
    if found.running:
        raise Refused(ErrorCode.BUSY, f"{found.name} runs: dockerd would say yes, and restore nothing")
    image = memory(await folder(docker, found), found, name)
    await docker_checkpoints.start(docker, found.id, name)
    now = await docker.inspect(found.id)
    if not now.running:
        raise RestoreFailed(f"{found.name} has ended as soon as it was started from {name}")
    if not native.is_restored(native.stat_of(now.pid), image):
        await docker.kill(found.id)
        raise RestoreFailed(f"{found.name} was started anew, not from {name}, and is ended", hint=native.OTHER_WAY)
    await kept.give_back(docker, state, found.id)


def memory(checkpoints: Path, found: Container, name: str) -> bytes:
    """CRIU's image of the first process's address space.

    Raises:
        Refused: there is no such checkpoint.

    """
    try:
        return (checkpoints / name / native.MM).read_bytes()
    except OSError as error:
        raise Refused(
            ErrorCode.NO_SUCH_CHECKPOINT,
            f"{found.name} has no checkpoint {name}: {error.strerror}",
            hint=f"`transship native ls {found.name}` lists them",
        ) from None


async def folder(docker: Docker, found: Container) -> Path:
    """Where dockerd keeps them."""
    return Path(await docker.data_root()) / "containers" / found.id / "checkpoints"


def upper(found: Container) -> Path:
    """The folder of the writable layer of a container that does not run.

    Raises:
        Refused: its storage driver has none.

    """
    driver = found.raw.get("GraphDriver") or {}
    place = (driver.get("Data") or {}).get("UpperDir")
    if not place:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"its writable layer is kept by {driver.get('Name') or 'the containerd image store'}",
            hint=native.OTHER_WAY,
        )
    return Path(place)


async def save_command(docker: Docker, found: Container, name: str, file: Path) -> tuple[str, ...]:
    """What writes a checkpoint and the writable layer into a tar, for the same container on another host.

    Raises:
        Refused: the container runs, or has no such checkpoint.

    """
    layer, checkpoints = upper(found), await folder(docker, found)
    if found.running:
        raise Refused(ErrorCode.BUSY, f"{found.name} runs: its files are not those of the checkpoint any more")
    if not (checkpoints / name).is_dir():
        raise Refused(ErrorCode.NO_SUCH_CHECKPOINT, f"{found.name} has no checkpoint {name}")
    words = ("-C", str(checkpoints.parent), f"checkpoints/{name}", "-C", str(layer.parent), layer.name)
    return ("sh", "-c", 'umask 077; exec "$0" "$@"', "tar", *TAR, "--create", f"--file={file}", *words)


async def load_commands(docker: Docker, found: Container, file: Path) -> list[tuple[str, ...]]:
    """What puts such a tar into a container that was created from the same image, and never started.

    Raises:
        Refused: it was started.

    """
    if found.state != "created":
        raise Refused(
            ErrorCode.BUSY,
            f"{found.name} is {found.state}: its own files would be written over",
            hint="`docker create` it anew, from the same image with the same options",
        )
    layer, checkpoints = upper(found), await folder(docker, found)
    tar = ("tar", *TAR, "--extract", f"--file={file.absolute()}")
    return [
        (*tar, "-C", str(checkpoints.parent), "checkpoints"),
        (*tar, "-C", str(layer.parent), layer.name),
    ]
