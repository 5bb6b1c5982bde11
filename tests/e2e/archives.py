"""Checkpoints in the lab: the command line on a host, and what tests look for afterwards."""

import json
from typing import Any

from lab import roots
from lab.cluster import TRANSSHIP, Cluster
from lab.host import Host
from lab.shell import Completed


def run(cluster: Cluster, host: str, words: str, *, check: bool = True, timeout: float = 180) -> Completed:
    """A line of shell on a host, as a person who is root there; `transship` is the controller's."""
    access = cluster.lab.broker.access("controller")
    env = {
        "TRANSSHIP_BROKER__HOST": access.address,
        "TRANSSHIP_BROKER__PORT": str(access.port),
        "TRANSSHIP_BROKER__USERNAME": access.user,
        "TRANSSHIP_BROKER__PASSWORD": access.password,
        "PATH": f"{TRANSSHIP.rpartition('/')[0]}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return cluster[host].run(["bash", "-o", "pipefail", "-ec", words], env=env, check=check, timeout=timeout)


def said(cluster: Cluster, host: str, words: str) -> dict[str, Any]:
    """The last thing that a command says with --json."""
    lines = run(cluster, host, f"{words} --json").stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def state(host: Host, name: str) -> str:
    return host.docker("inspect", "-f", "{{.State.Status}}", name, check=False)


def remove(host: Host, *names: str) -> None:
    host.docker("rm", "--force", "--volumes", *names, check=False)


def copy(here: Host, there: Host, path: str) -> None:
    with open(f"/proc/{here.node.init().pid}/root{path}", "rb") as file:
        there.run(["sh", "-c", f"cat > {path}"], stdin=file)


def give(host: Host, tool: str) -> None:
    """Put one of the programs for archives on a host that has it not."""
    path = f"/usr/local/bin/{tool}"
    if host.run(["test", "-x", path], check=False).returncode:
        with (roots.archive_tools() / tool).open("rb") as program:
            host.run(["sh", "-c", f"cat > {path} && chmod 755 {path}"], stdin=program)
