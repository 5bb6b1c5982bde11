"""A container that ends in the moment in which it is frozen: runc takes that for paused, and deletes nothing."""

import asyncio
import time
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import remove, state
from tests.e2e.support import clean, counts_on, until

SECONDS = 10.0


def group_of(here: Host, name: str) -> Path:
    """The freezer's cgroup of a container, as this machine sees it."""
    container, first = here.docker("inspect", "-f", "{{.Id}} {{.State.Pid}}", name).split()
    assert container in here.run(["cat", f"/proc/{first}/cgroup"]).stdout
    root = Path(f"/proc/{here.node.init().pid}/root/sys/fs/cgroup")
    found = [path for path in root.rglob(f"*{container}*") if (path / "cgroup.procs").exists()]
    [group] = [path for path in found if (path / "freezer.state").exists() or (path / "cgroup.freeze").exists()]
    return group


def freeze_when_empty(group: Path) -> bool:
    """Blocks until nothing is in it. Whether runc had not deleted it yet."""
    file, word = ("freezer.state", "FROZEN") if (group / "freezer.state").exists() else ("cgroup.freeze", "1")
    end = time.monotonic() + SECONDS
    try:
        while (group / "cgroup.procs").read_bytes():
            assert time.monotonic() < end, "it has not ended"
        (group / file).write_text(word)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["a26", "b28"])
async def test_nothing_is_left_of_it_when_it_is_removed(keeps: Cluster, host: str) -> None:
    here, name = keeps[host], "left-frozen"
    for _ in range(5):
        run_counter(here, name)
        try:
            await counts_on(here, name)
            group, first = group_of(here, name), here.docker("inspect", "-f", "{{.State.Pid}}", name)
            freezing = asyncio.create_task(asyncio.to_thread(freeze_when_empty, group))
            await asyncio.to_thread(here.run, ["kill", "-KILL", first])
            frozen = await freezing
            await until(lambda: state(here, name) == "exited", "dockerd has seen its end")
            frozen = frozen and group.exists()
        finally:
            remove(here, name)
        await clean(keeps, host)
        if frozen:  # else runc was quicker
            return
    pytest.fail("runc was quicker each time")
