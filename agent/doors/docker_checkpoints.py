"""Docker's own checkpoint API, as far as a daemon has it: experimental, and of use below Docker 28 only."""

from agent.doors.docker import NOT_FOUND, Docker, _path


async def is_experimental(docker: Docker) -> bool:
    """Whether the daemon offers it at all."""
    return bool(await docker._ask(lambda info: info.get("ExperimentalBuild", False), "GET", "info"))


async def create(docker: Docker, ref: str, name: str, *, leave_running: bool) -> None:
    """Take one; dockerd keeps it in the container's own folder. Has no deadline: it copies the memory several times."""
    body = {"CheckpointID": name, "Exit": not leave_running}
    await docker._do("POST", _path("containers", ref, "checkpoints"), body=body, timeout=None)


async def names(docker: Docker, ref: str) -> list[str]:
    rows = _path("containers", ref, "checkpoints")
    return await docker._ask(lambda found: sorted(str(row["Name"]) for row in found or ()), "GET", rows)


async def remove(docker: Docker, ref: str, name: str) -> None:
    await docker._do("DELETE", _path("containers", ref, "checkpoints", name), fine=(NOT_FOUND,))


async def start(docker: Docker, ref: str, name: str) -> None:
    """Start from one. That dockerd says it did is no proof that it was a restore."""
    await docker._do("POST", _path("containers", ref, "start"), params={"checkpoint": name}, timeout=None)
