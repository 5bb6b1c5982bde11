"""A Docker host of the lab: a machine with containerd, dockerd and, if wanted, the agent.

dockerd's configuration holds what the lab's owner asked for and nothing of the product: `transship setup` adds
that. Both daemons are started apart, as Debian's units do, so either may be restarted or killed alone.
"""

import enum
import json
import signal
import socket
from dataclasses import dataclass
from typing import Any, Self

from lab import images, service
from lab.node import Node
from lab.shell import Completed, LabError, Process

_DAEMON_JSON = "/etc/docker/daemon.json"
# What may follow the engine in a host's description.
OPTIONS = {"userns": "userns_remap", "containerd": "containerd_store", "cgroup2": "cgroup2", "debug": "debug"}
_CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


class Engine(enum.StrEnum):
    """Which Docker a host runs."""

    DOCKER26 = "docker26"
    DOCKER28 = "docker28"


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a host shall be."""

    name: str
    engine: Engine = Engine.DOCKER28
    userns_remap: bool = False
    containerd_store: bool = False
    cgroup2: bool = False
    debug: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME=ENGINE[,OPTION]...`."""
        name, _, rest = text.partition("=")
        engine, *options = rest.split(",") if rest else [Engine.DOCKER28]
        if engine not in list(Engine) or not set(options) <= set(OPTIONS):
            raise LabError(f"{text}: engines are {', '.join(Engine)}, options are {', '.join(OPTIONS)}")
        return cls(name, Engine(engine), **{OPTIONS[option]: True for option in options})

    def daemon_json(self) -> dict[str, Any]:
        """Build dockerd's configuration."""
        settings: dict[str, Any] = {"experimental": True, "debug": self.debug, "log-level": "info"}
        if self.userns_remap:
            settings["userns-remap"] = "default"
        if self.containerd_store:
            settings["features"] = {"containerd-snapshotter": True}
        else:
            settings["storage-driver"] = "overlay2"
        return settings


@dataclass(frozen=True, slots=True)
class Host:
    """One Docker host."""

    spec: HostSpec
    node: Node
    agent: service.AgentService

    @property
    def name(self) -> str:
        return self.spec.name

    # Life

    def create(self) -> None:
        """Prepare its disk before the first start."""
        self.node.seed(_DAEMON_JSON, json.dumps(self.spec.daemon_json(), indent=2) + "\n")

    def start(self) -> None:
        """Boot it and wait for Docker; after `kill` this is the boot after a power cut, with the same disks."""
        self.node.start()
        self.start_engine()
        self.wait_for_docker()

    def kill(self) -> None:
        """Switch it off like a power cut: nothing in it gets a chance to do anything."""
        self.node.kill()

    def stop(self) -> None:
        """Shut it down in order: the agent, then Docker with its containers, then the machine."""
        self.stop_agent()
        self._end("dockerd", grace=30)
        self._end("containerd", grace=10)
        self.node.kill()

    def reboot(self) -> None:
        self.stop()
        self.start()

    # Docker

    def start_engine(self) -> None:
        """Start containerd and dockerd without waiting for them."""
        self.start_containerd()
        self._spawn_dockerd()

    def wait_for_docker(self, timeout: float = 60) -> None:
        self.node.wait_for_daemon("dockerd", self._docker_answers, timeout)

    def stop_dockerd(self) -> None:
        """Ask dockerd to end; it stops the containers first."""
        self._end("dockerd", grace=30)

    def kill_dockerd(self) -> None:
        """End dockerd at once; the containers go on, kept by containerd."""
        if process := self.node.daemon("dockerd"):
            process.signal(signal.SIGKILL)
            process.wait(10)
        # A unit would start it anew, and it would take the pid file for that of a running one.
        self.run(["rm", "-f", "/run/docker.pid"])

    def kill_containerd(self) -> None:
        """End containerd at once; dockerd waits for the next one, and the containers go on with their shims."""
        if process := self.node.daemon("containerd"):
            process.signal(signal.SIGKILL)
            process.wait(10)

    def start_containerd(self) -> None:
        self.node.spawn("containerd", ["containerd"])

    def start_dockerd(self, *, wait: bool = True) -> None:
        self._spawn_dockerd()
        if wait:
            self.wait_for_docker()

    def restart_dockerd(self) -> None:
        self.stop_dockerd()
        self.start_dockerd()

    def docker(self, *args: str, check: bool = True, timeout: float = 120, input: str | None = None) -> str:  # noqa: A002
        """Run `docker ARGS` on the host and return what it printed, without the last newline."""
        return self.run(["docker", *args], check=check, timeout=timeout, input=input).stdout.rstrip("\n")

    def ensure_image(self, name: str) -> None:
        """Have one of the lab's images on this host, loading it if it is not there."""
        if self.run(["docker", "image", "inspect", name], check=False).returncode == 0:
            return
        with images.ensure(name).open("rb") as archive:
            self.run(["docker", "load", "--quiet"], stdin=archive, timeout=300)

    @property
    def runtime_root(self) -> str:
        """Where runc keeps the state of this host's Docker containers."""
        remapped = "-100000.100000" if self.spec.userns_remap else ""
        return f"/run/docker/runtime-runc/moby{remapped}"

    # The agent

    def start_agent(self, **options: Any) -> None:
        """Start the agent as a service; takes what `AgentService.start` takes."""
        self.agent.start(**options)

    def stop_agent(self) -> None:
        self.agent.stop()

    def kill_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.agent.kill(number)

    def agent_log(self) -> str:
        return self.agent.log()

    # Commands

    def run(self, argv: list[str], **options: Any) -> Completed:
        """Run a command on the host; takes what `Node.run` takes."""
        return self.node.run(argv, **options)

    def popen(self, argv: list[str], **options: Any) -> Process:
        """Start a command on the host; takes what `Node.popen` takes."""
        return self.node.popen(argv, **options)

    def _spawn_dockerd(self) -> None:
        self.node.spawn("dockerd", ["dockerd", "--containerd", _CONTAINERD_SOCKET])

    def _end(self, daemon: str, grace: float) -> None:
        if process := self.node.daemon(daemon):
            process.end(grace)

    def _docker_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            try:
                client.connect(f"/proc/{self.node.init().pid}/root/run/docker.sock")
                client.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                return b" 200 " in client.recv(64)
            except OSError:
                return False
