"""Agents under the confinement of the unit that is shipped, by a real systemd: `python -m tests.vm.confined`, as root.

For a machine of the VM lab, where systemd is the init. Each agent is a transient service with every confining directive
of the unit, and enters its host of the lab from there: bounding set and filters go along, and to runc and CRIU.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import HostSpec, shell
from lab.cluster import Cluster
from lab.host import Host
from lab.service import PROGRAM
from lab.shell import PATIENCE, Proc
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from tests.e2e.support import clean, counts_on

UNIT = Path(__file__).parents[2] / "systemd/transship-agent.service"
CONFINING = (
    *("CapabilityBoundingSet", "SystemCallFilter", "SystemCallErrorNumber", "SystemCallArchitectures"),
    *("RestrictAddressFamilies", "RestrictRealtime", "RestrictNamespaces", "RestrictSUIDSGID", "NoNewPrivileges"),
    *("LockPersonality", "MemoryDenyWriteExecute", "KeyringMode", "ProtectHostname", "UMask"),
)
NAME = "confined"
CAP_SYS_BOOT = 22


def directives(text: str) -> Iterator[str]:
    """The lines of a unit that take something away from its processes."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.partition("=")[0] in CONFINING:
            yield line


def confine(host: Host, lines: Sequence[str]) -> None:
    """End the host's agent, and start it as a service of this machine's systemd."""
    host.stop_agent()
    unit = f"agent-{host.name}"
    properties = [f"--property={line}" for line in (*lines, "KillMode=process")]
    environment = "--setenv=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/transship/bin"
    argv = host.node.enter(["sh", "-c", f"exec {PROGRAM} agent -v >>/var/log/transship-agent.log 2>&1"])
    shell.run(["systemd-run", f"--unit={unit}", "--collect", *properties, environment, "--", *argv], timeout=60)
    entered = int(shell.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout)
    children = Path(f"/proc/{entered}/task/{entered}/children")  # nsenter is the parent of what it starts
    shell.wait_until("the agent is there", lambda: bool(children.read_text().split()), 30 * PATIENCE)
    [agent] = map(int, children.read_text().split())
    found = Proc.of(agent)
    assert found is not None
    found.write(host.node.place / "transship-agent.pid")
    pairs = (line.split(":\t", 1) for line in Path(f"/proc/{agent}/status").read_text().splitlines())
    status = {pair[0]: pair[-1].strip() for pair in pairs}
    print(f"{host.name}: agent {agent}, CapBnd {status['CapBnd']}, filters {status.get('Seccomp_filters')}", flush=True)
    if int(status["CapBnd"], 16) & (1 << CAP_SYS_BOOT):
        raise shell.LabError(f"the agent of {host.name} is not confined")


async def move(cluster: Cluster, name: str, source: str, target: str, **fields: object) -> None:
    reply = await cluster.migrate(name, source, target, **fields)
    if reply.kind is not ReplyKind.FINISHED:
        raise shell.LabError(f"{source} -> {target}: {reply.error}")
    counted = await counts_on(cluster[target], name)
    blackout = reply.report.blackout_ms if reply.report else None
    print(f"{source} -> {target} {fields}: {len(counted.logged)} counted, blackout {blackout} ms", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--also", action="append", default=[], help="a directive beside those of the unit")
    parser.add_argument("--strategy", action="append", help="one move with each; the default is cold")
    said = parser.parse_args()
    lines = [*directives(UNIT.read_text()), *said.also]
    cluster = Cluster.up(NAME, [HostSpec("a"), HostSpec("b")])
    try:
        run_counter(cluster["a"], "counter")
        for name in ("a", "b"):
            confine(cluster[name], lines)
        asyncio.run(cluster.until_ready())
        at, other = "a", "b"
        for strategy in said.strategy or ["cold"]:
            asyncio.run(move(cluster, "counter", at, other, strategy=strategy, allow_postcopy=True))
            asyncio.run(clean(cluster, "a", "b", seconds=20 * PATIENCE))
            at, other = other, at
    except shell.LabError:
        for host in cluster.lab.hosts.values():
            print(f"--- {host.name}\n{host.agent_log()[-4000:]}", file=sys.stderr)
        raise
    finally:
        cluster.lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
