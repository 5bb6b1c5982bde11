"""The agent dies in the middle of a checkpoint: afterwards the container runs, or is checkpointed; never neither."""

import asyncio
import re
import time
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import KEEPS_AGENT, Typed, last_logged, policy, remove, run, state, typed
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
        assert policy(here, name) == "always"
        while started:
            started.pop().end()
        await clean(keeps, host)
    finally:
        while started:
            started.pop().end()
        remove(here, name)


MOMENTS = ("ready", "frozen", "dumped", "written", "listed")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("leave_running", [True, False], ids=["leave-running", "stop"])
@pytest.mark.parametrize("host", HOSTS)
async def test_an_agent_that_is_killed_meanwhile_leaves_it_running_or_checkpointed(
    keeps: Cluster, host: str, leave_running: bool, moment: str
) -> None:
    """Whenever that is. What is listed can be restored, and nothing else is left over."""
    here, name = keeps[host], f"ck-die-{host}"
    started: list[Typed] = []
    try:
        run_counter(here, name, "--restart", "always")
        here.docker("exec", name, "dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=48", "status=none")
        await counts_on(here, name)
        found = here.docker("inspect", "-f", "{{.Id}}", name)
        before = archives(here)
        watch = Watch(here, found, before[0])
        started.append(typed(keeps, host, f"transship checkpoint {name} {'-R' if leave_running else ''} >/dev/null"))
        await watch.until(moment)
        here.kill_agent()
        here.start_agent(config=KEEPS_AGENT)
        await keeps.until_ready()
        await clean(keeps, host)
        listed, noted, parts = archives(here)
        assert listed == noted
        assert parts == []
        new = sorted(listed - before[0])
        runs = state(here, name) == "running"
        assert runs or new, "neither"
        assert runs or not leave_running
        if runs:
            await counts_on(here, name)
            assert policy(here, name) == "always"
        else:
            last = last_logged(here, name)
            assert policy(here, name) == "no"
        remove(here, name)
        for each in new:
            run(keeps, host, f"transship restore {each}")
            now = await counts_on(here, name)
            assert runs or last in now.logged
            remove(here, name)
    finally:
        while started:
            started.pop().end()
        remove(here, name)


def archives(host: Host) -> tuple[set[str], set[str], list[str]]:
    """What lies in the folder: archives and notes by their ids, and what was not completed."""
    names = host.run(["ls", "-A", "/var/lib/transship/checkpoints"], check=False).stdout.split()
    whole = {match[1] for each in names if (match := re.fullmatch(r"checkpoint-.+-([0-9a-f]{12})\.tar\S*", each))}
    noted = {match[1] for each in names if (match := re.fullmatch(r"\.([0-9a-f]{12})\.json", each))}
    return whole, noted, [each for each in names if each.endswith(".part")]


class Watch:
    """Sees a checkpoint come to a point, from outside and within a millisecond."""

    def __init__(self, host: Host, container: str, before: set[str]) -> None:
        root = Path(f"/proc/{host.node.init().pid}/root")
        self._before = before
        self._dumps, self._folder = root / "run/transship/dump", root / "var/lib/transship/checkpoints"
        self._freezer = root / f"sys/fs/cgroup/freezer/docker/{container}/freezer.state"

    def ready(self) -> bool:
        return any(self._dumps.glob("*/images"))

    def frozen(self) -> bool:
        return self._freezer.read_text().strip() != "THAWED"

    def dumped(self) -> bool:
        return any(self._dumps.glob("*/work/stats-dump"))

    def written(self) -> bool:
        return any(path.stat().st_size > 24 << 20 for path in self._folder.glob(".*.part"))

    def listed(self) -> bool:
        return any(path.name[1:13] not in self._before for path in self._folder.glob(".*.json"))

    async def until(self, moment: str) -> None:
        end = time.monotonic() + 30
        while not getattr(self, moment)():
            assert time.monotonic() < end, moment
            await asyncio.sleep(0.0005)


def dumped(keeps: Cluster, host: str) -> bool:
    return bool(run(keeps, host, "ls /run/transship/dump/*/work/stats-dump 2>/dev/null || true").stdout)


def frozen(host: Host, container: str) -> bool:
    groups = "/sys/fs/cgroup/freezer/docker/{0}/freezer.state /sys/fs/cgroup/docker/{0}/cgroup.freeze"
    said = host.run(["sh", "-c", f"cat {groups.format(container)} 2>/dev/null || true"]).stdout
    return any(line in ("FROZEN", "1") for line in said.split())
