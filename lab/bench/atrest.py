"""What transship costs while nothing moves: the agents at rest, and its runtime at each start of a container."""

import time
from collections.abc import Iterator

from agent.cli.setup import RUNTIME
from lab.bench import meters
from lab.bench.processes import Primed
from lab.bench.record import Idle, Start
from lab.cluster import Cluster
from lab.host import Host

_SETTLE_SECONDS = 5.0
_RUN_SECONDS = 60.0


def idle(cluster: Cluster, seconds: float) -> Iterator[Idle]:
    """Let every agent rest, and look what it took."""
    time.sleep(_SETTLE_SECONDS)
    load = meters.load()
    agents = {host.name: meters.Daemon.of(host.node, "transship-agent") for host in cluster.lab.hosts.values()}
    before = {name: agent.seconds() for name, agent in agents.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    for name, agent in agents.items():
        used = agent.seconds() - before[name]
        yield Idle(
            host=name,
            engine=str(cluster[name].spec.engine),
            seconds=round(took, 1),
            rss_mib=round(agent.rss_mib(), 1),
            anonymous_mib=round(agent.anonymous_mib(), 1),
            cpu_percent=round(100 * used / took, 3),
            load=load,
        )


def starts(host: Host, runs: int) -> Iterator[Start]:
    """`docker run --rm busybox true` with runc and with transship's runtime, in turn."""
    host.ensure_image("busybox")
    load = meters.load()
    for run in range(runs + 1):
        # Neither is always the first of its pair; the first pair does not count.
        runtimes = ("runc", RUNTIME) if run % 2 else (RUNTIME, "runc")
        took = {runtime: _start_ms(host, runtime) for runtime in runtimes}
        if run:
            yield Start(
                engine=str(host.spec.engine), run=run, runc_ms=took["runc"], transship_ms=took[RUNTIME], load=load
            )


def _start_ms(host: Host, runtime: str) -> float:
    command = ["docker", "run", "--rm", "--network", "none", "--runtime", runtime, "busybox", "true"]
    with Primed(host.node, *command) as primed:
        began = time.monotonic()
        primed.run(_RUN_SECONDS)
        return round((time.monotonic() - began) * 1000, 1)
