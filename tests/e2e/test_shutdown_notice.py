"""A host that is said to go down: its containers are brought to safety by a plan, and are there again if it stays up.

A real shutdown, by systemd, is that of tests/vm/test_shutdown.py; what is done before it is the same.
"""

import asyncio

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import last_logged, policy, remove, run, state
from tests.e2e.support import counts_on, until
from tests.e2e.test_hibernate import HIBERNATES, events, newest

NAMES = ("hi-first", "hi-second", "hi-ignored")
BY_DOCKER = ("--runtime", "transship", "--label", "transship.on-shutdown=hibernate", "--restart", "unless-stopped")


def run_three(here: Host) -> None:
    """One whose stop signal hibernates it, one with the usual one, and one that wishes nothing."""
    remove(here, *NAMES)
    compose = ("com.docker.compose.project=shop", "com.docker.compose.service")
    labels = [("--label", compose[0], "--label", f"{compose[1]}={name}") for name in ("first", "second")]
    first = ("--label", "com.docker.compose.depends_on=second:service_started:false", "--restart", "always")
    run_counter(here, "hi-first", *HIBERNATES, *labels[0], *first)
    run_counter(here, "hi-second", *BY_DOCKER, *labels[1])
    run_counter(here, "hi-ignored", "--restart", "always")


async def test_what_was_hibernated_for_a_notice_is_started_again_when_that_is_called_off(keeps: Cluster) -> None:
    """dockerd, which would start them at its own start, does not: their policy is theirs again only afterwards."""
    here = keeps["b28"]
    run_three(here)
    try:
        for name in NAMES:
            await counts_on(here, name)
        async with events(keeps, "b28") as heard:
            run(keeps, "b28", "transship shutdown-notice --in 90s")
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready")
            [plan] = [one.detail["plan"] for one in heard if one.kind == "host-shutdown-planned"]
            assert "hi-first: hibernate" in plan
            assert "hi-second: hibernate" in plan
            assert "ignored" not in plan
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
            assert sorted(result.split("; ")) == ["hi-first: hibernated", "hi-second: hibernated"]
            last = {name: last_logged(here, name) for name in NAMES[:2]}
            here.restart_dockerd()
            await keeps.until_ready()
            assert [(state(here, name), policy(here, name)) for name in NAMES[:2]] == [("exited", "no")] * 2
            run(keeps, "b28", "transship shutdown-notice --called-off")
            for name in NAMES[:2]:
                await until(lambda name=name: state(here, name) == "running", f"{name} runs")
                await until(lambda name=name: last_logged(here, name) > last[name], f"{name} counts on")
                assert (await counts_on(here, name)).missing == 0
            started = [one.container for one in heard if one.kind == "start" and one.container in NAMES[:2]]
            assert started == ["hi-second", "hi-first"], "one after the other that it depends on"
            await until(lambda: policy(here, "hi-first") == "always", "it has its own policy again")
            await until(lambda: policy(here, "hi-second") == "unless-stopped", "it has its own policy again")
    finally:
        remove(here, *NAMES)


async def test_without_the_time_for_it_a_container_is_stopped_as_it_would_be_without_a_label(keeps: Cluster) -> None:
    """One with a harmless stop signal gets another one: else the host would wait for its whole stop timeout."""
    here = keeps["b28"]
    run_three(here)
    try:
        await counts_on(here, "hi-first")
        async with events(keeps, "b28") as heard:
            run(keeps, "b28", "transship shutdown-notice --in 5s")
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready")
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
            assert sorted(result.split("; ")) == ["hi-first: stopped", "hi-second: left to Docker"]
            await until(lambda: state(here, "hi-first") == "exited", "it has ended")
            last = last_logged(here, "hi-first")
            run(keeps, "b28", "transship shutdown-notice --called-off")
            await until(lambda: 0 < newest(here, "hi-first") < last, "it is started, anew")
    finally:
        remove(here, *NAMES)


async def test_one_that_wishes_it_is_moved_away_and_the_host_takes_none_until_that_is_called_off(
    keeps: Cluster,
) -> None:
    here, name = keeps["a26"], "hi-away"
    for host in keeps.lab.hosts.values():
        remove(host, name)
    run_counter(here, name, "--label", "transship.on-shutdown=evacuate", "--label", "transship.targets=c26")
    try:
        await counts_on(here, name)
        async with events(keeps, "a26") as heard:
            await asyncio.to_thread(run, keeps, "a26", "transship shutdown-notice --in 90s")
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready", 90)
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
        assert result == f"{name}: evacuated"
        await counts_on(keeps["c26"], name)
        assert state(here, name) == ""
        assert "cordoned" in run(keeps, "a26", "transship hosts --json").stdout
        run(keeps, "a26", "transship shutdown-notice --called-off")
        gone = "! test -e /var/lib/transship/cordoned.json"
        await until(lambda: here.run(["sh", "-c", gone], check=False).returncode == 0, "it takes containers again")
        assert (await counts_on(keeps["c26"], name)).missing == 0
    finally:
        for host in keeps.lab.hosts.values():
            remove(host, name)
