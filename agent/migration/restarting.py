"""The restart policy: `no` while a container is between two hosts; then its own again, and what that would have done.

While it is `no`, dockerd starts nothing: not after a reboot, and not a program that ends by itself. Afterwards somebody
has to, or a move that was taken back has cost the container.
"""

import logging
import signal
from collections.abc import Mapping

from agent.base.errors import DockerFailed
from agent.checkpoint import proc
from agent.doors.docker import Docker
from agent.migration.run import Run

log = logging.getLogger("agent.migration")


async def set_back(docker: Docker, run: Run, container_id: str, policy: Mapping[str, object]) -> None:
    """Make sure that the container has its own policy; nothing to do for one that is gone.

    dockerd can't change one that it takes for running, and whose end it has missed: containerd was killed just then,
    say. It finds that out when it is to stop it.
    """
    found = await docker.find(container_id)
    if found is None:
        return
    try:
        await docker.set_restart_policy(container_id, dict(policy))
    except DockerFailed:
        if not found.running or not found.pid or proc.start_time(found.pid) is not None:
            raise
        log.warning("%s: dockerd has missed the end of %s, and is told of it", run.id, found.name)
        run.unheard = True
        await docker.stop(container_id, seconds=0)
        await docker.set_restart_policy(container_id, dict(policy))


async def start_as_docker_would(
    docker: Docker, container_id: str, policy: Mapping[str, object], *, stopped: bool = False
) -> None:
    """Start it if it has ended while its policy was `no`, and its own would have had it started."""
    found = await docker.find(container_id)
    if found is not None and not found.running and not stopped and _restarts(policy, found.exit_code):
        await docker.start(container_id)


def _restarts(policy: Mapping[str, object], exit_code: int) -> bool:
    name = policy.get("Name")
    return name in ("always", "unless-stopped") or (name == "on-failure" and exit_code != 0)


def is_meant_to_end(sent: str, stop_signal: str) -> bool:
    """Whether dockerd takes a signal for the wish that a container ends for good; the signals as Docker writes them.

    Any, where the container names no stop signal of its own.
    """
    return not stop_signal or number(sent) in (signal.SIGKILL, number(stop_signal))


def number(name: str) -> int:
    """`SIGQUIT`, `QUIT`, `3` and `RTMIN+3` are all signals to Docker; 0 for what is none."""
    if name.isdigit():
        return int(name)
    word, plus, offset = name.upper().removeprefix("SIG").partition("+")
    found = getattr(signal, f"SIG{word}", 0)
    return int(found) + (int(offset) if plus and offset.isdigit() else 0)
