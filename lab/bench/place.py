"""The lab of a benchmark: a pair of machines for each engine, and the systems that move between them."""

import asyncio
import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.bench import podman_root
from lab.bench.meters import available_mib
from lab.bench.record import About
from lab.bench.systems.bare import BareSystem
from lab.bench.systems.base import System
from lab.bench.systems.docker import DockerSystem
from lab.bench.systems.podman import PodmanSystem, version
from lab.bench.systems.transship import TransshipSystem
from lab.cluster import Cluster
from lab.host import Engine, HostSpec
from lab.naming import state_folder
from lab.network import Address
from lab.node import Node
from lab.shell import LabError

SYSTEMS = ("transship-cold", "transship-postcopy", "podman", "docker", "bare")
_SUFFIX = {Engine.DOCKER26: "26", Engine.DOCKER28: "28"}
_FIRST_PODMAN = 61
_COMPRESS = ("none", "zstd")


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that is needed, up and equipped."""

    cluster: Cluster
    systems: list[System]
    versions: dict[str, str]

    @classmethod
    def up(cls, lab: str, names: Sequence[str], engines: Sequence[Engine], say: Callable[[str], None]) -> Self:
        """Make a lab in which these systems can move something between hosts of these engines."""
        unknown = set(names) - set(SYSTEMS)
        if unknown:
            raise LabError(f"no system {', '.join(sorted(unknown))}: there are {', '.join(SYSTEMS)}")
        needed = list(engines) if {"transship-cold", "transship-postcopy", "bare"} & set(names) else []
        if "docker" in names and Engine.DOCKER26 not in needed:
            needed.append(Engine.DOCKER26)  # the only one whose own restore works
        specs = [HostSpec(f"{side}{_SUFFIX[engine]}", engine) for engine in needed for side in "ab"]
        podman_layers = podman_root.ensure() if "podman" in names else ()
        cluster = Cluster.up(lab, specs, say=say)
        try:
            versions = asyncio.run(_versions(cluster))
            systems: list[System] = []
            for name in names:
                if name == "podman":
                    machines = _podman_machines(cluster, podman_layers)
                    versions["podman"] = version(machines[0])
                    systems += [PodmanSystem(versions["podman"], each, *machines) for each in _COMPRESS]
                elif name == "docker":
                    systems.append(DockerSystem(cluster["a26"], cluster["b26"]))
                else:
                    systems += [_between(name, cluster, engine) for engine in engines]
        except BaseException:
            cluster.lab.down()
            raise
        return cls(cluster, systems, versions)

    def about(self) -> About:
        kernel, cpus = os.uname().release, os.cpu_count() or 1
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return About(at=at, kernel=kernel, cpus=cpus, memory_mib=int(available_mib()), versions=self.versions)


def _between(name: str, cluster: Cluster, engine: Engine) -> System:
    source, target = cluster[f"a{_SUFFIX[engine]}"], cluster[f"b{_SUFFIX[engine]}"]
    if name == "bare":
        return BareSystem(source, target)
    return TransshipSystem(name.removeprefix("transship-"), cluster, source, target)


def _podman_machines(cluster: Cluster, layers: tuple[Path, ...]) -> list[Node]:
    """Machines of the same lab, removed with it, that have Podman and no Docker."""
    machines = []
    for number, name in enumerate(("podman-a", "podman-b")):
        place = state_folder() / cluster.lab.name / name
        address = Address(_FIRST_PODMAN + number)
        node = Node(cluster.lab.name, name, place, layers, cluster.lab.switch, address)
        node.seed("/etc/hosts", "127.0.0.1 localhost\n")
        node.seed("/etc/resolv.conf", "# no name server in the lab\n")
        node.start()
        machines.append(node)
    return machines


async def _versions(cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = {}
    async with cluster.controller() as controller:
        for one in await controller.hosts():
            if one.engine is not None:
                key = str(cluster[one.host].spec.engine)
                found[key] = f"Docker {one.engine.docker}, runc {one.engine.runc}, CRIU {one.engine.criu}"
    return found
