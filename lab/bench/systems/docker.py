"""Docker's own way: `docker checkpoint create`, the files copied, `docker start --checkpoint`. Docker 26 only."""

import json
import time

from lab.bench import meters
from lab.bench.processes import Carrier, Primed
from lab.bench.systems.base import MOVE_SECONDS, NAME, PLACE, Load, System
from lab.host import Host
from lab.macvlan import ensure_network

_CHECKPOINT = "moved"
_DAEMONS = ("dockerd", "containerd")


def start_container(host: Host, verb: str, load: Load) -> str:
    """`docker run -d` or `docker create`; the container's id."""
    return host.docker(*verb.split(), "--name", NAME, *PLACE.options, load.image, *load.command)


class DockerSystem(System):
    """See the module."""

    name = "docker"

    def __init__(self, source: Host, target: Host) -> None:
        self._from, self._to = source, target
        self.engine = str(source.spec.engine)
        self.source, self.target = source.node, target.node
        self._load = Load(0)
        self._carrier: Carrier | None = None
        self._commands: list[Primed] = []

    def equip(self, image: str) -> None:
        for host in (self._from, self._to):
            ensure_network(host)
            host.ensure_image(image)
            # Docker has no option for it, and without it no container with a connection can be dumped. runc reads this
            # where no annotation names another file; transship's own commands always have one.
            host.node.write("/etc/criu/runc.conf", "tcp-established\n")

    def start(self, load: Load) -> None:
        self._load = load
        start_container(self._from, "run -d", load)

    def prepare(self) -> None:
        start_container(self._to, "create", self._load)
        self._carrier = Carrier(self.source, self.target)
        create = Primed(self.source, "docker", "checkpoint", "create", NAME, _CHECKPOINT)
        start = Primed(self.target, "docker", "start", "--checkpoint", _CHECKPOINT, NAME)
        self._commands = [create, start]
        for daemon in self._daemons():
            daemon.forget_peak()

    def move(self) -> float:
        assert self._carrier is not None
        create, start = self._commands
        paths = [(here, there) for here, there in zip(self._paths(self._from), self._paths(self._to), strict=True)]
        began = time.monotonic()
        create.run(MOVE_SECONDS)
        self._carrier.carry(paths, MOVE_SECONDS)
        start.run(MOVE_SECONDS)
        return time.monotonic() - began

    def _paths(self, host: Host) -> list[str]:
        """Where a host has the checkpoint and the container's changed files."""
        found = json.loads(host.docker("inspect", NAME))[0]
        checkpoint = f"/var/lib/docker/containers/{found['Id']}/checkpoints/{_CHECKPOINT}"
        return [checkpoint, found["GraphDriver"]["Data"]["UpperDir"]]

    def _daemons(self) -> list[meters.Daemon]:
        return [meters.Daemon.of(node, name) for node in (self.source, self.target) for name in _DAEMONS]

    def peak_rss_mib(self) -> float:
        return max(daemon.peak_mib() for daemon in self._daemons())

    def clean(self) -> None:
        for command in self._commands:
            command.close()
        self._commands = []
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
        for host in (self._from, self._to):
            host.docker("rm", "--force", NAME, check=False)
