"""Docker's own checkpoint API, as far as a daemon has it: experimental, and of use below Docker 28 only."""

from agent.doors.docker_gate import NOT_FOUND, Gate, path_of


async def is_experimental(docker: Gate) -> bool:
    """Whether the daemon offers it at all."""
    return bool(await docker.ask(lambda info: info.get("ExperimentalBuild", False), "GET", "info"))


async def create(docker: Gate, ref: str, name: str, *, leave_running: bool) -> None:
    """Take one; dockerd keeps it in the container's own folder. Has no deadline: it copies the memory several times."""
    body = {"CheckpointID": name, "Exit": not leave_running}
    await docker.do("POST", path_of("containers", ref, "checkpoints"), body=body, timeout=None)


async def names(docker: Gate, ref: str) -> list[str]:
    rows = path_of("containers", ref, "checkpoints")
    return await docker.ask(lambda found: sorted(str(row["Name"]) for row in found or ()), "GET", rows)


async def remove(docker: Gate, ref: str, name: str) -> None:
    await docker.do("DELETE", path_of("containers", ref, "checkpoints", name), fine=(NOT_FOUND,))


async def start(docker: Gate, ref: str, name: str) -> None:
    """Start from one. That dockerd says it did is no proof that it was a restore."""
    await docker.do("POST", path_of("containers", ref, "start"), params={"checkpoint": name}, timeout=None)
