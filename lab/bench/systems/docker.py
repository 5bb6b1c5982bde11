"""Docker's own way: `docker checkpoint create`, the files copied, `docker start --checkpoint`. Docker 26 only."""

import json

from lab.bench import meters
from lab.bench.systems.base import NAME, PLACE, Load
from lab.bench.systems.carried import CarriedSystem
from lab.host import Host
from lab.macvlan import ensure_network

_CHECKPOINT = "moved"
_DAEMONS = ("dockerd", "containerd")


def start_container(host: Host, verb: str, load: Load) -> str:
    """`docker run -d` or `docker create`; the container's id."""
    return host.docker(*verb.split(), "--name", NAME, *PLACE.options, load.image, *load.command)


class DockerSystem(CarriedSystem):
    """See the module."""

    name = "docker"

    def __init__(self, source: Host, target: Host) -> None:
        super().__init__(source.node, target.node)
        self._from, self._to = source, target
        self.engine = str(source.spec.engine)
        self._load = Load(0)

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
        create = ["docker", "checkpoint", "create", NAME, _CHECKPOINT]
        self.prime(create, ["docker", "start", "--checkpoint", _CHECKPOINT, NAME])
        for daemon in self._daemons():
            daemon.forget_peak()

    def paths(self) -> list[tuple[str, str]]:
        return list(zip(self._places(self._from), self._places(self._to), strict=True))

    def _places(self, host: Host) -> list[str]:
        """Where a host has the checkpoint and the container's changed files."""
        found = json.loads(host.docker("inspect", NAME))[0]
        checkpoint = f"/var/lib/docker/containers/{found['Id']}/checkpoints/{_CHECKPOINT}"
        return [checkpoint, found["GraphDriver"]["Data"]["UpperDir"]]

    def _daemons(self) -> list[meters.Daemon]:
        return [meters.Daemon.of(node, name) for node in (self.source, self.target) for name in _DAEMONS]

    def peak_rss_mib(self) -> float:
        return max(daemon.peak_mib() for daemon in self._daemons())

    def clean(self) -> None:
        super().clean()
        for host in (self._from, self._to):
            host.docker("rm", "--force", NAME, check=False)
