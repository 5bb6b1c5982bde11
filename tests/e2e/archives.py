"""Checkpoints in the lab: the command line on a host, and what tests look for afterwards."""

import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import roots
from lab.cluster import TRANSSHIP, Cluster
from lab.host import Host
from lab.node import Node
from lab.shell import PIPE, Completed, Process

KEEPS_AGENT = {"checkpoints": {"insecure_registries": ["a26:5000"]}}


def controller(cluster: Cluster) -> dict[str, str]:
    """The environment in which the command line finds the broker, as the controller."""
    access = cluster.lab.broker.access("controller")
    return {
        "TRANSSHIP_BROKER__HOST": access.address,
        "TRANSSHIP_BROKER__PORT": str(access.port),
        "TRANSSHIP_BROKER__USERNAME": access.user,
        "TRANSSHIP_BROKER__PASSWORD": access.password,
    }


def environment(cluster: Cluster) -> dict[str, str]:
    """That of a person who is root on a host; `transship` is the controller's."""
    return controller(cluster) | {
        "PATH": f"{TRANSSHIP.rpartition('/')[0]}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    }


def run(cluster: Cluster, host: str, words: str, *, check: bool = True, timeout: float = 180) -> Completed:
    """A line of shell on a host, as its root types it."""
    argv = ["bash", "-o", "pipefail", "-ec", words]
    return cluster[host].run(argv, env=environment(cluster), check=check, timeout=timeout)


@dataclass(frozen=True, slots=True)
class Typed:
    """A command that root has typed on a host, and that has not ended by itself yet."""

    host: Host
    process: Process
    pid: int
    """On the host, whose numbers are not the lab's."""

    def end(self) -> int:
        """End it as whoever stops its service would; how it has ended."""
        self.host.run(["kill", "-TERM", str(self.pid)], check=False)
        with self.process:
            return self.process.wait(20)


def typed(cluster: Cluster, host: str, words: str) -> Typed:
    """Start a command without waiting for it."""
    argv = ["bash", "-ec", f"echo $$; exec {words}"]
    process = cluster[host].popen(argv, env=environment(cluster), stdout=PIPE, text=True)
    assert process.stdout is not None
    return Typed(cluster[host], process, int(process.stdout.readline()))


def said(cluster: Cluster, host: str, words: str) -> dict[str, Any]:
    """The last thing that a command says with --json."""
    lines = run(cluster, host, f"{words} --json").stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def state(host: Host, name: str) -> str:
    return host.docker("inspect", "-f", "{{.State.Status}}", name, check=False)


def policy(host: Host, name: str) -> str:
    return host.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name)


def address(host: Host, name: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return host.docker("inspect", "-f", form, name)


def last_logged(host: Host, name: str) -> int:
    """The highest number of a counter that does not run any more."""
    return max(int(line) for line in host.docker("logs", name).split())


def remove(host: Host, *names: str) -> None:
    host.docker("rm", "--force", "--volumes", *names, check=False)


def copy(here: Host | Node, there: Host | Node, path: str) -> None:
    node = here.node if isinstance(here, Host) else here
    with open(f"/proc/{node.init().pid}/root{path}", "rb") as file:
        there.run(["sh", "-c", f"cat > {path}"], stdin=file)


def give_compose(host: Host) -> None:
    with roots.compose_plugin().open("rb") as program:
        plugin = "/usr/local/lib/docker/cli-plugins/docker-compose"
        host.run(["install", "-D", "--mode=755", "/dev/stdin", plugin], stdin=program)


def give_tools(host: Host) -> None:
    """Put checkpointctl, docker-registry and skopeo on a host that has them not."""
    names = ("checkpointctl", "docker-registry", "skopeo")
    if host.run(["which", *names], check=False).returncode != 0:
        layer = roots.archive_tools()
        give(host, layer, *(layer / "usr/bin" / name for name in names), layer / "etc/containers")


def give(host: Host, layer: Path, *programs: Path) -> None:
    """Put what is in a layer on a host that was made without, with what it is linked with."""
    wanted = [*programs, *sorted((layer / "usr/lib").glob("*-linux-gnu/lib*.so*"))]
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in wanted:
                tar.add(path, str(path.relative_to(layer)))
        file.seek(0)
        host.run(["tar", "-C", "/", "--skip-old-files", "-x"], stdin=file)
