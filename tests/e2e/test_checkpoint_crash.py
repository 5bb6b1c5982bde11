"""The agent dies in the middle of a checkpoint: afterwards the container runs, or is checkpointed; never neither."""

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import KEEPS_AGENT, Typed, remove, run, typed
from tests.e2e.support import clean, counts_on, until

HOSTS = ["a26", "b28"]


@pytest.mark.parametrize("host", HOSTS)
async def test_an_agent_that_is_killed_while_it_stands_still_lets_it_go_on(keeps: Cluster, host: str) -> None:
    """The archive's reader does not read, so the container stands still; then the agent dies, and comes back."""
    here, name = keeps[host], f"ck-crash-{host}"
    started: list[Typed] = []
    try:
        run_counter(here, name, "--restart", "always")
        here.docker("exec", name, "dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=32", "status=none")
        await counts_on(here, name)
        found = here.docker("inspect", "-f", "{{.Id}}", name)
        here.run(["sh", "-c", "rm -f /root/stalled; mkfifo /root/stalled"])
        started.append(typed(keeps, host, "sleep 60 < /root/stalled"))
        words = f"transship checkpoint {name} --compress none --to - > /root/stalled"
        started.append(typed(keeps, host, words))
        await until(lambda: dumped(keeps, host) and frozen(here, found), "it is dumped and stands still")
        here.kill_agent()
        assert frozen(here, found), "nobody lets it go while the agent is away"
        here.start_agent(config=KEEPS_AGENT)
        await keeps.until_ready()
        await until(lambda: not frozen(here, found), "the agent takes it back")
        await counts_on(here, name)
        assert here.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name) == "always"
        while started:
            started.pop().end()
        await clean(keeps, host)
    finally:
        while started:
            started.pop().end()
        remove(here, name)


def dumped(keeps: Cluster, host: str) -> bool:
    return bool(run(keeps, host, "ls /run/transship/dump/*/work/stats-dump 2>/dev/null || true").stdout)


def frozen(host: Host, container: str) -> bool:
    groups = "/sys/fs/cgroup/freezer/docker/{0}/freezer.state /sys/fs/cgroup/docker/{0}/cgroup.freeze"
    said = host.run(["sh", "-c", f"cat {groups.format(container)} 2>/dev/null || true"]).stdout
    return any(line in ("FROZEN", "1") for line in said.split())
