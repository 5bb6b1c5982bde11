"""What a checkpoint has ended is not started empty by its restart policy; started by a person, it has that again."""

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import last_logged, policy, remove, run, said, state
from tests.e2e.support import counts_on, until

HOSTS = ["a26", "b28"]
POLICIES = {"always": "always", "unless-stopped": "unless-stopped", "on-failure": "on-failure:5"}


@pytest.mark.parametrize("host", HOSTS)
async def test_dockerd_comes_up_again_and_starts_none_of_them(keeps: Cluster, host: str) -> None:
    """Docker itself starts one of `always`, and one of `on-failure` that was killed, however it was stopped."""
    here = keeps[host]
    names = {name: f"ck-{name}-{host}" for name in POLICIES}
    try:
        for wanted, name in names.items():
            run_counter(here, name, "--restart", POLICIES[wanted])
        taken = {}
        for wanted, name in names.items():
            await counts_on(here, name)
            taken[wanted] = said(keeps, host, f"transship checkpoint {name}")["id"]
        here.restart_dockerd()
        await keeps.until_ready()
        for name in names.values():
            assert (state(here, name), policy(here, name)) == ("exited", "no")
        for wanted, name in list(names.items())[1:]:
            here.docker("start", name)
            await until(lambda name=name, wanted=wanted: policy(here, name) == wanted, f"{name} has its own again")
        kept = here.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.MaximumRetryCount}}", names["on-failure"])
        assert kept == "5"
        last = last_logged(here, names["always"])
        remove(here, *names.values())
        run(keeps, host, f"transship restore {taken['always']}")
        assert last in (await counts_on(here, names["always"])).logged
        assert policy(here, names["always"]) == "always"
        assert here.run(["ls", "/var/lib/transship/policies"]).stdout == ""
    finally:
        remove(here, *names.values())


@pytest.mark.parametrize("host", HOSTS)
async def test_one_that_is_started_while_no_agent_is_there_has_it_with_the_agent(keeps: Cluster, host: str) -> None:
    here, name = keeps[host], f"ck-alone-{host}"
    try:
        run_counter(here, name, "--restart", "always")
        await counts_on(here, name)
        said(keeps, host, f"transship checkpoint {name}")
        here.stop_agent()
        here.docker("start", name)
        assert policy(here, name) == "no"
        here.start_agent()
        await keeps.until_ready()
        await until(lambda: policy(here, name) == "always", "it has its own again")
    finally:
        if not here.agent.running():
            here.start_agent()
        remove(here, name)
