"""The two hosts of a campaign: one of each engine, disks of their own for what they keep, relays between the agents.

dockerd has live-restore, so that its end alone ends no container; agents have short deadlines, so that a run is short.
"""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from agent.base.errors import AgentError
from agent.cli.controller import Controller
from lab.chaos import disks, kernel
from lab.chaos.peer_relay import PeerRelay
from lab.cluster import TRANSSHIP, Cluster
from lab.host import Engine, Host, HostSpec
from lab.naming import state_folder
from lab.network import Address
from lab.shell import PATIENCE, LabError, wait_until
from protocol.base import new_command_id
from protocol.commands import Ping
from protocol.errors import ErrorCode

A, B = "a26", "b28"
HOSTS = (HostSpec(A, Engine.DOCKER26), HostSpec(B, Engine.DOCKER28))
RELAYS = {A: Address(61), B: Address(62)}
MEMORY_BYTES = 256 << 20
LIMIT = 4
"""Moves at once."""
AGENT: dict[str, Any] = {
    "deadlines": {"connect": 2.0, "offer": 10.0, "stage": 20.0, "dump": 20.0, "prepare": 20.0, "go": 8.0},
    "limits": {"migrations": LIMIT},
}
AGENT["deadlines"] |= {"ask_again": 0.25, "docker": 20.0, "freeze": 5.0}
ASK_AGAIN_SECONDS = 0.1
FAKETIME = "/usr/local/lib/libfaketime.so.1"
CLOCK_OFF = {"LD_PRELOAD": FAKETIME, "FAKETIME": "+5h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Ground:
    """A lab, made ready for accidents and ready again after each."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.relays = {name: PeerRelay(cluster.lab, name, address) for name, address in RELAYS.items()}
        self.slowed = False
        self.starts: list[tuple[str, float]] = []
        """Agents that were started again: host, wall clock."""

    @classmethod
    def make(cls, name: str) -> "Ground":
        """Bring the lab up; its agents' journals lie on disks of their own from the first moment on."""
        for spec in HOSTS:  # a campaign before this one may have been killed
            disks.release(state_folder() / name / spec.name)
        cluster = Cluster.up(name, HOSTS)
        try:
            ground = cls(cluster)
            for host in cluster.lab.hosts.values():
                host.stop_agent()
                _set_up_docker(host)
                disks.make(host, disks.JOURNAL)
                _bring_library(host)
                address = {"peer": {"address": RELAYS[host.name].v4}}
                host.agent.always(AGENT | address)
        except BaseException:
            cluster.lab.down()
            raise
        return ground

    async def open(self) -> None:
        for relay in self.relays.values():
            await relay.start()
        for host in self.hosts:
            self.start_agent(host)
        await self.cluster.until_ready()

    async def pause(self) -> None:
        """End what runs in this process; `open` may follow."""
        for relay in self.relays.values():
            await relay.close()

    def remove(self) -> None:
        for host in self.hosts:
            if host.node.running():
                host.stop_agent()
                host.run(["umount", disks.JOURNAL.place], check=False)
        for host in self.hosts:
            disks.release(host.node.place)
        self.cluster.lab.down()

    async def close(self) -> None:
        await self.pause()
        await asyncio.to_thread(self.remove)

    @property
    def hosts(self) -> list[Host]:
        return list(self.cluster.lab.hosts.values())

    def __getitem__(self, name: str) -> Host:
        return self.cluster.lab[name]

    def start_agent(self, host: Host, *, clock_off: bool = False) -> None:
        if not host.agent.running():
            self.starts.append((host.name, time.time()))
            host.start_agent(extra_env=CLOCK_OFF if clock_off else None)

    def boot(self, host: Host) -> None:
        """Bring a host up again after a power cut, its agent too."""
        host.node.start()
        for disk in disks.DISKS:
            disks.mount(host, disk)
        host.start_engine()
        host.wait_for_docker()
        self.start_agent(host)

    def restart_dockerd(self, host: Host) -> None:
        if host.node.running() and host.node.daemon("dockerd") is None:
            host.run(["rm", "-f", "/run/docker.pid"])
            host.start_dockerd()

    def restart_containerd(self, host: Host) -> None:
        if host.node.running() and host.node.daemon("containerd") is None:
            host.start_containerd()

    def mend(self) -> None:
        """Whatever has happened to it: both hosts, the links, the broker and the agents are as they should be."""
        lab = self.cluster.lab
        for relay in self.relays.values():
            relay.mend()
        for host in self.hosts:
            if not host.node.running():
                self.boot(host)
        for link in (A, B):
            lab.heal(link)
        if lab.broker.node.daemon("mosquitto") is None:
            lab.broker.start()
        for host in self.hosts:
            for disk in disks.DISKS:
                disks.empty(host, disk)
            self.restart_containerd(host)
            self.restart_dockerd(host)
            self.start_agent(host)

    def lift_limits(self) -> None:
        """Give each container the memory again that it was started with."""
        for host in self.hosts:
            for copy in kernel.copies(host):
                set_memory(host, copy.container, MEMORY_BYTES)

    async def until_ready(self, seconds: float = 40.0) -> None:
        """Wait until both agents take commands: what is retained may be of before the broker or an agent was gone."""
        async with asyncio.timeout(seconds):
            for host in self.hosts:
                await asyncio.to_thread(wait_for_containerd, host, seconds)
            await self.cluster.until_ready()
            async with Controller(self.cluster.broker) as controller:
                for host in self.hosts:
                    while not await _answers(controller, host):
                        await asyncio.sleep(ASK_AGAIN_SECONDS)


def wait_for_containerd(host: Host, seconds: float) -> None:
    """Wait until dockerd has it: it goes on without, but starts no container then, and tries again by a clock."""
    parts = "{{range .Server.Components}}{{.Name}} {{end}}"  # containerd is one while dockerd reaches it
    wait_until(
        f"dockerd of {host.name} has containerd",
        lambda: "containerd" in host.docker("version", "--format", parts, check=False).split(),
        seconds,
        every=0.1,
    )


async def _answers(controller: Controller, host: Host) -> bool:
    try:
        await controller.ask(host.name, Ping(id=new_command_id()), patience=2 * PATIENCE)
    except AgentError as error:
        return error.code is ErrorCode.EXPIRED  # by a clock that is off
    return True


def set_memory(host: Host, container: str, limit: int | None = None) -> bool:
    """Set a container's memory limit; without a number, to what it uses just now."""
    folder = kernel.controller_folder(host, "memory", container)
    if folder is None:
        return False
    with contextlib.suppress(OSError):
        version1 = (folder / "memory.limit_in_bytes").exists()
        used = int((folder / ("memory.usage_in_bytes" if version1 else "memory.current")).read_text())
        most = folder / ("memory.limit_in_bytes" if version1 else "memory.max")
        most.write_text(str(limit or max(used, 1 << 20)))
        return True
    return False


def shrink_tmpfs(host: Host, below: str) -> int:
    """Let the file systems for images below this folder have no room beyond what they hold; how many there were."""
    mounts = [line.split() for line in host.node.read("/proc/mounts").splitlines()]
    found = [where for _, where, kind, *_ in mounts if kind == "tmpfs" and where.startswith(below)]
    for where in found:
        path = Path(f"/proc/{host.node.init().pid}/root{where}")
        with contextlib.suppress(OSError):
            room = os.statvfs(path)
            used = (room.f_blocks - room.f_bfree) * room.f_frsize
            host.run(["mount", "-o", f"remount,size={max(used, 4096)}", where], check=False)
    return len(found)


def _set_up_docker(host: Host) -> None:
    """With live-restore, and its data on a disk of its own."""
    configuration = json.loads(host.node.read("/etc/docker/daemon.json"))
    host.node.write("/etc/docker/daemon.json", json.dumps(configuration | {"live-restore": True}), 0o644)
    host.run([TRANSSHIP, "setup"], timeout=60)
    host.stop_dockerd()
    disks.make(host, disks.DOCKER)
    host.start_dockerd()


def _bring_library(host: Host) -> None:
    """What lets a single program see another time (the `faketime` package), where this machine has it."""
    found = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
    if found is None:
        raise LabError("libfaketime is missing: scripts/chaos installs it")
    with found.open("rb") as library:
        host.run(["sh", "-c", f"cat >{FAKETIME}"], stdin=library)
