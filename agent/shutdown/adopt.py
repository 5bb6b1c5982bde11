"""Make a container anew so that it can be hibernated: other runtime, stop signal and timeout, label; else the same.

None of these can be changed on a container that is there. It is stopped and started once, so what it has in memory is
lost, and so is its writable layer: it is refused where anything is in that, unless that is said to be of no worth.
Volumes stay. Until the new one runs the old one is only renamed, and comes back if anything fails.
"""

from dataclasses import dataclass

from agent.base.errors import AgentError, Refused
from agent.base.undo import Undo
from agent.doors.docker import Docker
from agent.doors.docker_gate import path_of
from agent.doors.docker_model import Container
from agent.migration import fitting, spec
from agent.shutdown.wishes import HIBERNATE, ON_SHUTDOWN
from protocol.errors import ErrorCode, Reason

STOP_SIGNAL = "SIGURG"
SHOWN = 5
BY_DOCKER = ("/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/.dockerenv")
"""Places in a writable layer that Docker itself makes at a start."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is to be afterwards."""

    runtime: str
    stop_timeout: int = 120
    discard_files: bool = False


async def check(docker: Docker, found: Container, wanted: Wanted) -> tuple[str, ...]:
    """What making it anew will do, each a sentence.

    Raises:
        Refused: something would be lost.

    """
    if found.auto_remove:
        raise Refused(ErrorCode.NOT_MIGRATABLE, f"{found.name} is removed when it ends (--rm)")
    for label, manager in (("com.docker.swarm.task.id", "Swarm"), ("io.kubernetes.pod.uid", "Kubernetes")):
        if label in found.labels:
            raise Refused(ErrorCode.NOT_MIGRATABLE, f"{found.name} belongs to {manager}, which would make another")
    files = await changes(docker, found)
    if files and not wanted.discard_files:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"{found.name} has {len(files)} changed files in its writable layer, which would be lost",
            hint="put them into a volume, or docker commit them; --discard-files says that they are of no worth",
            reasons=[Reason(code=ErrorCode.NOT_MIGRATABLE, message=name) for name in files[:SHOWN]],
        )
    running = ["it is stopped and started once: what it has in memory is lost"] if found.running else []
    lost = [f"{len(files)} changed files in its writable layer are lost"] if files else []
    return (
        *running,
        *lost,
        f"its runtime becomes {wanted.runtime}, its stop signal {STOP_SIGNAL}, which programs don't notice",
        f"without a running agent a stop takes {wanted.stop_timeout} s, and then kills it",
        "it gets another id; its name, configuration, networks and volumes stay",
    )


async def changes(docker: Docker, found: Container) -> list[str]:
    """Files in the writable layer that are not Docker's own."""
    rows = await docker.ask(lambda said: list(said or ()), "GET", path_of("containers", found.id, "changes"))
    paths = sorted(str(row["Path"]) for row in rows)
    folders = {path.rpartition("/")[0] for path in paths}
    # a folder is listed since something in it is
    return [path for path in paths if path not in folders and not path.startswith(BY_DOCKER)]


async def adopt(docker: Docker, found: Container, wanted: Wanted) -> str:
    """Do it; the new container's id."""
    image = await docker.image(found.image_id)
    if image is None:
        raise Refused(ErrorCode.NOT_MIGRATABLE, f"the image of {found.name} was removed on this host")
    described = await spec.describe(docker, found, image, {})
    body = fitting.without_addresses(described.create, described.pinned)
    body["Image"] = found.image
    body["StopSignal"], body["StopTimeout"] = STOP_SIGNAL, wanted.stop_timeout
    body["Labels"] = {**(body.get("Labels") or {}), ON_SHUTDOWN: HIBERNATE}
    body["HostConfig"] = {
        **body["HostConfig"],
        "Runtime": wanted.runtime,
        "RestartPolicy": dict(found.restart_policy),
    }
    old = f"{found.name}.before-{found.id[:12]}"
    async with Undo() as undo:
        undo.first("start it again", _start_again, docker, found)
        await docker.set_restart_policy(found.id, {"Name": "no"})
        await docker.stop(found.id)
        undo.first("give it its name back", _rename_back, docker, found)
        await docker.rename(found.id, old)
        undo.first("remove the new one", _remove_new, docker, found)
        made = await docker.create(found.name, body)
        if found.running:
            await docker.start(made)
        undo.detach()
    await docker.remove(found.id)
    return made


async def _start_again(docker: Docker, found: Container) -> None:
    await docker.set_restart_policy(found.id, dict(found.restart_policy))
    if found.running:
        await docker.start(found.id)


async def _rename_back(docker: Docker, found: Container) -> None:
    now = await docker.find(found.id)
    if now is not None and now.name != found.name:
        await docker.rename(found.id, found.name)


async def _remove_new(docker: Docker, found: Container) -> None:
    try:
        now = await docker.find(found.name)
    except AgentError:
        return
    if now is not None and now.id != found.id:
        await docker.remove(now.id)
