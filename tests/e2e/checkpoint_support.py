"""A checkpoint seen from outside while it is taken, what lies in a host's folder, and an agent with other settings."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lab.cluster import Cluster
from lab.host import Host
from tests.e2e.archives import typed
from tests.e2e.support import counts_on, until


@asynccontextmanager
async def configured(cluster: Cluster, host: str, **checkpoints: Any) -> AsyncIterator[None]:
    """Its agent with these settings of checkpoints."""
    here = cluster[host]
    here.stop_agent()
    try:
        here.start_agent(config={"checkpoints": checkpoints})
        await cluster.until_ready()
        yield
    finally:
        here.stop_agent()
        here.start_agent()
        await cluster.until_ready()


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

    def stands_still(self) -> bool:
        return self.dumped() and self.frozen()

    async def until(self, moment: str) -> None:
        end = time.monotonic() + 30
        while not getattr(self, moment)():
            assert time.monotonic() < end, moment
            await asyncio.sleep(0.0005)


@asynccontextmanager
async def stalled(keeps: Cluster, host: str, name: str, options: str = "") -> AsyncIterator[Watch]:
    """A container that counts, and that stands still within the block: the reader of its archive does not read.

    /root/marker is as old as the checkpoint. What was typed for it has ended after the block.
    """
    here = keeps[host]
    watch = Watch(here, here.docker("inspect", "-f", "{{.Id}}", name), set())
    here.docker("exec", name, "dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=32", "status=none")
    await counts_on(here, name)
    here.run(["sh", "-c", "rm -f /root/stalled /root/marker; mkfifo /root/stalled; touch /root/marker"])
    started = [typed(keeps, host, "sleep 60 < /root/stalled")]
    try:
        started.append(typed(keeps, host, f"transship checkpoint {name} {options} --to - > /root/stalled"))
        await until(watch.stands_still, "it is dumped and stands still", 60)
        yield watch
    finally:
        while started:
            started.pop().end()
