"""The agent dies in the middle of a checkpoint: afterwards the container runs, or is checkpointed; never neither."""

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import Typed, last_logged, policy, remove, run, state, typed
from tests.e2e.checkpoint_support import Watch, archives, stalled
from tests.e2e.support import clean, counts_on, until

HOSTS = ["a26", "b28"]


@pytest.mark.parametrize("host", HOSTS)
async def test_an_agent_that_is_killed_while_it_stands_still_lets_it_go_on(keeps: Cluster, host: str) -> None:
    """The archive's reader does not read, so the container stands still; then the agent dies, and comes back."""
    here, name = keeps[host], f"ck-crash-{host}"
    try:
        run_counter(here, name, "--restart", "always")
        async with stalled(keeps, host, name, "--compress none") as watch:
            here.kill_agent()
            assert watch.frozen(), "nobody lets it go while the agent is away"
            here.start_agent()
            await keeps.until_ready()
            await until(lambda: not watch.frozen(), "the agent takes it back")
            await counts_on(here, name)
            assert policy(here, name) == "always"
        await clean(keeps, host)
    finally:
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
        here.start_agent()
        await keeps.until_ready()
        await clean(keeps, host)
        listed, noted, parts = archives(here)
        assert listed == noted
        assert parts == []
        assert here.run(["sh", "-c", "ls /var/lib/transship/policies/*.part"], check=False).stdout == ""
        new = sorted(listed - before[0])
        runs = state(here, name) == "running"
        assert runs or new, "neither"
        assert runs or not leave_running
        if runs:
            await counts_on(here, name)
            assert policy(here, name) == "always"
            assert found not in here.run(["ls", "/var/lib/transship/policies"], check=False).stdout
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
