"""A host that is said to go down: its containers are brought to safety by a plan, and are there again if it stays up.

A real shutdown, by systemd, is that of tests/vm/test_shutdown.py; what is done before it is the same.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import COUNTER, run_counter
from protocol.base import new_command_id, utc_now
from protocol.commands import ReplyKind, ShutdownNotice
from protocol.status import MigrationStatus, Phase
from tests.e2e.archives import give_compose, last_logged, policy, remove, run, state
from tests.e2e.support import counts_on, until
from tests.e2e.test_hibernate import HIBERNATES, events, newest

NAMES = ("hi-first", "hi-second", "hi-ignored")
BY_DOCKER = ("--runtime", "transship", "--label", "transship.on-shutdown=hibernate", "--restart", "unless-stopped")
EVACUATES = ("--runtime", "transship", "--label", "transship.on-shutdown=evacuate", "--label", "transship.targets=c26")
FILE = "/srv/hibernates.json"


def service(name: str, **more: object) -> dict[str, object]:
    program = COUNTER.format(mib=4, pause=0.02)
    return {
        "image": "py",
        "command": ["python3", "-c", program],
        "container_name": name,
        "runtime": "transship",
        "stop_signal": "SIGURG",
        "stop_grace_period": "1m",
        "labels": {"transship.on-shutdown": "hibernate"},
        **more,
    }


def compose(here: Host, *words: str) -> None:
    here.docker("compose", f"--file={FILE}", "--progress=quiet", *words)


def compose_up(here: Host) -> None:
    """Two services, one after the other that it depends on."""
    give_compose(here)
    here.ensure_image("py")
    first = service("hi-first", depends_on=["second"], restart="always")
    second = service("hi-second", restart="unless-stopped")
    here.node.write(FILE, json.dumps({"name": "shop", "services": {"first": first, "second": second}}))
    remove(here, *NAMES)
    compose(here, "up", "--detach")


async def test_compose_hibernates_what_it_stops_and_wakes_what_it_starts(keeps: Cluster) -> None:
    here = keeps["b28"]
    compose_up(here)
    try:
        for name in NAMES[:2]:
            await counts_on(here, name)
        compose(here, "stop")
        last = {name: last_logged(here, name) for name in NAMES[:2]}
        compose(here, "start")
        for name in NAMES[:2]:
            await until(lambda name=name: last_logged(here, name) > last[name], f"{name} counts on")
            assert (await counts_on(here, name)).missing == 0
        await it_is_told_of_a_shutdown(keeps, here)
    finally:
        compose(here, "down", "--timeout=0")
        remove(here, *NAMES)


async def it_is_told_of_a_shutdown(keeps: Cluster, here: Host) -> None:
    """dockerd, which would start them at its own start, does not: their policy is theirs again only when that is called
    off, and they were started in Compose's order.
    """
    run_counter(here, "hi-ignored", "--restart", "always")
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


async def test_without_the_time_for_it_a_container_is_stopped_as_it_would_be_without_a_label(keeps: Cluster) -> None:
    """One with a harmless stop signal gets another one: else the host would wait for its whole stop timeout."""
    here = keeps["b28"]
    remove(here, *NAMES)
    run_counter(here, "hi-first", *HIBERNATES, "--restart", "always")
    run_counter(here, "hi-second", *BY_DOCKER)
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


async def test_where_the_time_is_too_short_for_its_wish_a_container_gets_the_next_one(keeps: Cluster) -> None:
    """One that should be moved away is hibernated, one that should be hibernated is stopped.

    Of 8.8 s 5 are kept for that: a move takes longer on any link, and so does writing the larger one at 100 MB/s.
    """
    here, names = keeps["a26"], ("hi-asleep", "hi-ended")
    remove(here, *names)
    run_counter(here, "hi-asleep", *EVACUATES, "--label", "transship.priority=1", mib=16)
    run_counter(here, "hi-ended", *HIBERNATES, "--restart", "always", mib=400)
    try:
        for name in names:
            await counts_on(here, name)
        async with events(keeps, "a26") as heard:
            await asyncio.to_thread(run, keeps, "a26", "transship shutdown-notice --in 8.8s")
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready", 90)
            [plan] = [one.detail["plan"] for one in heard if one.kind == "host-shutdown-planned"]
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
        planned = ["hi-asleep: hibernate (no time to evacuate)", "hi-ended: stop (no time to hibernate)"]
        assert [step.rpartition(" by ")[0] for step in plan.split("; ")] == planned
        assert sorted(result.split("; ")) == ["hi-asleep: hibernated", "hi-ended: stopped"]
        last = last_logged(here, "hi-ended")
        run(keeps, "a26", "transship shutdown-notice --called-off")
        assert (await counts_on(here, "hi-asleep")).missing == 0
        await until(lambda: 0 < newest(here, "hi-ended") < last, "it is started, anew")
    finally:
        remove(here, *names)


async def test_a_notice_is_taken_up_by_the_next_agent(keeps: Cluster) -> None:
    """One that is killed in the middle of its work leaves nobody as he is for that."""
    here = keeps["b28"]
    remove(here, *NAMES)
    run_counter(here, "hi-first", *HIBERNATES, "--restart", "always", mib=100)
    run_counter(here, "hi-second", *BY_DOCKER, mib=4)
    try:
        for name in NAMES[:2]:
            await counts_on(here, name)
        async with events(keeps, "b28") as heard:
            run(keeps, "b28", "transship shutdown-notice --in 120s")
            begun = "until [ -e /var/lib/transship/going-down.json ]; do sleep 0.01; done"
            here.run(["timeout", "30", "sh", "-c", begun])
            here.kill_agent()
            here.start_agent()
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready", 90)
            assert "an agent before this one" in next(one.detail["why"] for one in heard if "took" in one.detail)
        assert [(state(here, name), policy(here, name)) for name in NAMES[:2]] == [("exited", "no")] * 2
        run(keeps, "b28", "transship shutdown-notice --called-off")
        for name in NAMES[:2]:
            await until(lambda name=name: state(here, name) == "running", f"{name} runs")
            assert (await counts_on(here, name)).missing == 0
    finally:
        remove(here, *NAMES)


async def test_one_that_was_moved_away_comes_home_by_itself_when_that_is_called_off(keeps: Cluster) -> None:
    """By its label; until then the host takes no containers."""
    here, there, name = keeps["a26"], keeps["c26"], "hi-away"
    for host in (here, there):
        remove(host, name)
    run_counter(here, name, *EVACUATES, "--label", "transship.return=auto", mib=4)
    try:
        await counts_on(here, name)
        async with events(keeps, "a26") as heard:
            await asyncio.to_thread(run, keeps, "a26", "transship shutdown-notice --in 90s")
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready", 90)
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
        assert result == f"{name}: evacuated"
        await counts_on(there, name)
        assert state(here, name) == ""
        assert "cordoned" in run(keeps, "a26", "transship hosts --json").stdout
        run(keeps, "a26", "transship shutdown-notice --called-off")
        await until(lambda: (state(here, name), state(there, name)) == ("running", ""), "it is at home", 60)
        assert (await counts_on(here, name)).missing == 0
        assert here.run(["test", "-e", "/var/lib/transship/cordoned.json"], check=False).returncode
    finally:
        for host in (here, there):
            remove(host, name)


async def test_one_that_is_being_moved_when_the_host_goes_down_ends_its_move_first(keeps: Cluster) -> None:
    """It is neither stopped here nor hibernated in the middle of that, nor started here again."""
    here, there, name = keeps["a26"], keeps["c26"], "hi-moving"
    for host in (here, there):
        remove(host, name)
    run_counter(here, name, *HIBERNATES, "--restart", "always", mib=200)
    try:
        await counts_on(here, name)
        async with events(keeps, "a26") as heard, keeps.controller() as controller:
            began = utc_now()
            moving = asyncio.create_task(keeps.migrate(name, "a26", "c26"))
            moves = cast("AsyncGenerator[MigrationStatus]", controller.watch_moves("a26"))
            async with asyncio.timeout(60), aclosing(moves):
                async for move in moves:
                    if move.started_at > began and move.phase in (Phase.RESERVED, Phase.COPYING, Phase.FROZEN):
                        break
            await controller.ask("a26", ShutdownNotice(id=new_command_id(), seconds=60.0))
            assert (await moving).kind is ReplyKind.FINISHED
            await until(lambda: any(one.kind == "host-shutdown-ready" for one in heard), "it is ready")
            [result] = [one.detail["result"] for one in heard if one.kind == "host-shutdown-ready"]
            assert result == f"{name}: moved away"
        run(keeps, "a26", "transship shutdown-notice --called-off")
        assert (await counts_on(there, name)).missing == 0
        assert (state(here, name), policy(there, name)) == ("", "always")
    finally:
        for host in (here, there):
            remove(host, name)
