"""What is done to the hosts, when its moment has come; each says whether there was anything to hit.

Whatever lasts is mended when its time is over, or by `Ground.mend` at the end of the run.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.chaos import disks, kernel
from lab.chaos import ground as grounds
from lab.chaos.ground import Ground
from lab.chaos.peer_relay import Harm
from lab.chaos.plan import Accident, Fault
from lab.host import Host
from lab.shell import PATIENCE, LabError, Proc

PREY_SECONDS = 0.4 * PATIENCE
"""For a process to appear that is to be killed in this phase."""
STOP_SECONDS = 40.0 * PATIENCE
PROGRAMS = {
    Accident.CRIU_KILLED: ("criu",),
    Accident.RUNC_KILLED: ("runc",),
    Accident.SHIM_KILLED: ("containerd-shim",),
}


@dataclass(slots=True)
class Struck:
    """One accident as it happened."""

    fault: Fault
    host: str
    hit: bool
    at: float
    """On the wall clock."""
    source_phase: str = ""
    target_phase: str = ""
    detail: str = ""
    answers: list[str] = field(default_factory=list)


def prey(host: Host, names: tuple[str, ...]) -> list[Proc]:
    """The processes of these names on a host, by their numbers on the outer machine."""
    found = []
    for pid in kernel.processes(host):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith(names):
                found.append(Proc.of(pid))
    return [process for process in found if process is not None]


def _kill(host: Host, names: tuple[str, ...]) -> int:
    end = time.monotonic() + PREY_SECONDS
    while not (found := prey(host, names)) and time.monotonic() < end:
        time.sleep(0.003)
    for process in found:
        process.signal(signal.SIGKILL)
    return len(found)


def _host_gone(ground: Ground, host: Host) -> bool:
    host.kill()
    return True


def _agent(ground: Ground, host: Host, number: signal.Signals) -> bool:
    if not host.agent.running():
        return False
    host.kill_agent(number)
    end = time.monotonic() + STOP_SECONDS  # asked to stop it first takes back what it has begun
    while host.agent.running() and time.monotonic() < end:
        time.sleep(0.05)
    return True


def _dockerd_killed(ground: Ground, host: Host) -> bool:
    if host.node.daemon("dockerd") is None:
        return False
    host.kill_dockerd()
    return True


def _containerd_killed(ground: Ground, host: Host) -> bool:
    if host.node.daemon("containerd") is None:
        return False
    host.kill_containerd()
    return True


def _link_cut(ground: Ground, host: Host) -> bool:
    ground.cluster.lab.cut(host.name)
    return True


def _link_slow(ground: Ground, host: Host) -> bool:
    ground.cluster.lab.slow(host.name, "30mbit")
    return True


def _broker_gone(ground: Ground, host: Host) -> bool:
    ground.cluster.lab.broker.kill()
    return True


def _disk_full(ground: Ground, host: Host) -> bool:
    disks.fill(host, disks.JOURNAL)
    return True


def _docker_full(ground: Ground, host: Host) -> bool:
    disks.fill(host, disks.DOCKER)
    return True


def _tmpfs_full(ground: Ground, host: Host) -> bool:
    end = time.monotonic() + PREY_SECONDS
    while not (found := grounds.shrink_tmpfs(host, "/run/transship/")) and time.monotonic() < end:
        time.sleep(0.01)
    return found > 0


def _memory_limit(ground: Ground, host: Host) -> bool:
    end = time.monotonic() + PREY_SECONDS
    while not (found := any(grounds.set_memory(host, copy.container) for copy in kernel.copies(host))):
        if time.monotonic() > end:
            break
        time.sleep(0.003)
    return found


DOES: dict[Accident, Callable[[Ground, Host], bool]] = {
    Accident.AGENT_KILLED: lambda ground, host: _agent(ground, host, signal.SIGKILL),
    Accident.AGENT_STOPPED: lambda ground, host: _agent(ground, host, signal.SIGTERM),
    Accident.CRIU_KILLED: lambda ground, host: _kill(host, PROGRAMS[Accident.CRIU_KILLED]) > 0,
    Accident.RUNC_KILLED: lambda ground, host: _kill(host, PROGRAMS[Accident.RUNC_KILLED]) > 0,
    Accident.SHIM_KILLED: lambda ground, host: _kill(host, PROGRAMS[Accident.SHIM_KILLED]) > 0,
    Accident.DOCKERD_KILLED: _dockerd_killed,
    Accident.CONTAINERD_KILLED: _containerd_killed,
    Accident.HOST_GONE: _host_gone,
    Accident.LINK_CUT: _link_cut,
    Accident.LINK_SLOW: _link_slow,
    Accident.BROKER_GONE: _broker_gone,
    Accident.DISK_FULL: _disk_full,
    Accident.DOCKER_FULL: _docker_full,
    Accident.TMPFS_FULL: _tmpfs_full,
    Accident.MEMORY_LIMIT: _memory_limit,
}
"""Those that are done to a host; commands and streams are the campaign's own."""


def _agent_back(ground: Ground, host: Host) -> None:
    if host.node.running():
        host.agent.wait_ended(10)
        ground.start_agent(host)


def _booted(ground: Ground, host: Host) -> None:
    if not host.node.running():
        ground.boot(host)


def _healed(ground: Ground, host: Host) -> None:
    if host.node.running():
        ground.cluster.lab.heal(host.name)


def _broker_back(ground: Ground, host: Host) -> None:
    broker = ground.cluster.lab.broker
    if broker.node.daemon("mosquitto") is None:
        broker.start()


MENDS: dict[Accident, Callable[[Ground, Host], None]] = {
    Accident.AGENT_KILLED: _agent_back,
    Accident.AGENT_STOPPED: _agent_back,
    Accident.DOCKERD_KILLED: lambda ground, host: ground.restart_dockerd(host),
    Accident.CONTAINERD_KILLED: lambda ground, host: ground.restart_containerd(host),
    Accident.HOST_GONE: _booted,
    Accident.LINK_CUT: _healed,
    Accident.LINK_SLOW: _healed,
    Accident.BROKER_GONE: _broker_back,
    Accident.DISK_FULL: lambda ground, host: disks.empty(host, disks.JOURNAL),
    Accident.DOCKER_FULL: lambda ground, host: disks.empty(host, disks.DOCKER),
}


async def strike(ground: Ground, fault: Fault, host: Host) -> tuple[bool, str]:
    """Do it; whether there was anything to hit, and what went otherwise than meant."""
    if fault.accident in (Accident.TRUNCATED, Accident.FLIPPED):
        harm = Harm.FLIP if fault.accident is Accident.FLIPPED else Harm.TRUNCATE
        ground.relays[host.name].harm(harm, fault.seed)
        return True, ""
    try:
        return await asyncio.to_thread(DOES[fault.accident], ground, host), ""
    except (LabError, OSError) as error:  # another accident was there before
        return False, str(error).splitlines()[0]


async def mend(ground: Ground, fault: Fault, host: Host) -> str:
    """End what lasts."""
    try:
        if fault.accident in MENDS:
            await asyncio.to_thread(MENDS[fault.accident], ground, host)
    except (LabError, OSError) as error:  # the end of the run does it
        return str(error).splitlines()[0]
    return ""
