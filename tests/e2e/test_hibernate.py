"""A container that hibernates: whatever stops it puts its memory on the disk, and its next start goes on from there."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import counted, run_counter
from protocol.status import Event
from tests.e2e.archives import last_logged, remove, run, state
from tests.e2e.support import counts_on, until
from tests.e2e.test_failures import replaced

HOSTS = ["a26", "b28"]
PLACE = "/var/lib/transship/hibernated"
HIBERNATES = (
    *("--runtime", "transship", "--label", "transship.on-shutdown=hibernate"),
    *("--stop-signal", "SIGURG", "--stop-timeout", "60"),
)


@asynccontextmanager
async def hibernating(cluster: Cluster, host: str, name: str, *options: str) -> AsyncIterator[Host]:
    """A counter that does, and that goes on once more at the end of the test."""
    here = cluster[host]
    remove(here, name)
    run_counter(here, name, *HIBERNATES, *options)
    try:
        await counts_on(here, name)
        yield here
    finally:
        remove(here, name)
        await until(lambda: "said" in here.run(["ls", PLACE]).stdout.split()[:2], "nothing of it is left")


def stop(here: Host, name: str) -> int:
    """The last number that it printed."""
    began = time.monotonic()
    here.docker("stop", name)
    assert time.monotonic() - began < 40, "it was killed at the end of its stop timeout"
    assert state(here, name) == "exited"
    return last_logged(here, name)


@asynccontextmanager
async def events(cluster: Cluster, host: str) -> AsyncIterator[list[Event]]:
    """What the host's agent says meanwhile."""
    heard: list[Event] = []
    async with cluster.controller() as controller:

        async def listen() -> None:
            async for event in controller.events(host):
                heard.append(event)

        def happen() -> bool:
            for word in ("create", "rm"):
                cluster[host].docker("volume", word, "hi-probe")
            return bool(heard)

        task = asyncio.create_task(listen())
        try:
            await until(happen, "the agent's events are heard")
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("host", HOSTS)
async def test_it_is_stopped_and_started_again_and_again(keeps: Cluster, host: str) -> None:
    """Nothing of its count is missing, nothing comes twice, and no stop takes as long as its timeout."""
    name = f"hi-{host}"
    async with hibernating(keeps, host, name) as here:
        for _ in range(20 if host == "b28" else 5):
            last = stop(here, name)
            here.docker("start", name)
            await until(lambda last=last: last_logged(here, name) > last + 3, "it counts on")
        now = await counts_on(here, name)
        assert (now.missing, now.duplicated) == (0, 0)
        assert here.run(["ls", "-A", f"{PLACE}/said"]).stdout == ""


@pytest.mark.parametrize("host", HOSTS)
async def test_what_fails_for_runc_when_it_wakes_ends_nothing(keeps: Cluster, host: str) -> None:
    """Where it can't write its last file, say: it would kill what it has restored, when the images are used up."""
    name = f"hi-no-pid-file-{host}"
    other_file = 'for a; do shift; [ "$p" = --pid-file ] && a=/no/such/file; p=$a; set -- "$@" "$a"; done'
    script = f'case " $* " in *" restore "*) {other_file};; esac; exec /usr/sbin/runc.real "$@"'
    async with hibernating(keeps, host, name) as here:
        last = stop(here, name)
        with replaced(here, "/usr/sbin/runc", script):
            here.docker("start", name)
            await until(lambda: last_logged(here, name) > last + 3, "it counts on")
        last = stop(here, name)
        here.docker("start", name)
        await until(lambda: last_logged(here, name) > last + 3, "and once more")
        now = await counts_on(here, name)
        assert (now.missing, now.duplicated) == (0, 0)


def newest(here: Host, name: str) -> int:
    """The number that it printed last; a cold start begins at 1 again."""
    return int(here.docker("logs", "--tail", "1", name) or 0)


def pid(here: Host, name: str) -> str:
    return here.docker("inspect", "-f", "{{.State.Pid}}", name)


@pytest.mark.parametrize("host", HOSTS)
async def test_one_whose_files_were_changed_is_not_woken_and_its_label_says_what_then(
    keeps: Cluster, host: str
) -> None:
    name = f"hi-stale-{host}"
    async with (
        events(keeps, host) as heard,
        hibernating(keeps, host, name, "--label", "transship.on-stale=down") as here,
    ):
        last = stop(here, name)
        record = f"{PLACE}/{here.docker('inspect', '-f', '{{.Id}}', name)}/asleep.json"
        as_it_was = here.node.read(record)
        for what in ("kernel", "configuration"):  # as if it had been put to sleep under another one
            other = json.loads(as_it_was)
            other["fingerprint"][what] += " of before"
            here.node.write(record, json.dumps(other), 0o600)
            assert f"its {what}" in here.run(["docker", "start", name], check=False).stderr
        here.node.write(record, as_it_was, 0o600)
        here.run(["sh", "-c", f"date > /root/changed; docker cp /root/changed {name}:/changed"])
        assert "its files" in here.run(["docker", "start", name], check=False).stderr
        assert state(here, name) != "running"
        [sleeps] = [json.loads(line) for line in run(keeps, host, "transship hibernated --json").stdout.splitlines()]
        assert (sleeps["name"], sleeps["on_stale"]) == (name, "down")
        run(keeps, host, f"transship hibernated --forget {name} --yes")
        here.docker("start", name)
        await until(lambda: 0 < newest(here, name) < last, "it has started anew")

        def told() -> list[tuple[str, str]]:
            return [(one.kind, one.detail.get("code", "")) for one in heard if one.container == name]

        await until(lambda: told().count(("wake-refused", "incompatible")) == 3, f"it was told: {told()}")
        kinds = [kind for kind, _ in told() if kind.startswith(("hibern", "wake", "woke"))]
        assert kinds == ["hibernated", *["wake-refused"] * 3]


async def test_by_default_it_starts_cold_then_and_that_is_told(keeps: Cluster) -> None:
    name = "hi-cold"
    async with events(keeps, "b28") as heard, hibernating(keeps, "b28", name) as here:
        last = stop(here, name)
        here.run(["sh", "-c", f"date > /root/changed; docker cp /root/changed {name}:/changed"])
        here.docker("start", name)
        await until(lambda: 0 < newest(here, name) < last, "it has started anew")
        await until(lambda: any(one.detail.get("then") == "cold" for one in heard), "it was told")


@pytest.mark.parametrize("host", HOSTS)
async def test_dockerd_that_is_restarted_hibernates_it_and_wakes_it(keeps: Cluster, host: str) -> None:
    """Its API is closed by then: what is needed was known before. With live-restore nothing is done to it at all."""
    name = f"hi-dockerd-{host}"
    async with hibernating(keeps, host, name, "--restart", "unless-stopped") as here:
        before = pid(here, name)
        here.restart_dockerd()
        await until(lambda: state(here, name) == "running", "it runs")
        assert pid(here, name) != before
        now = await counts_on(here, name)
        assert (now.missing, now.duplicated) == (0, 0)
        await keeps.until_ready()
        settings = here.node.read("/etc/docker/daemon.json")
        try:
            here.node.write(
                "/etc/docker/daemon.json", json.dumps({**json.loads(settings), "live-restore": True}), 0o644
            )
            here.run(["sh", "-c", "kill -HUP $(cat /run/docker.pid)"])
            before = pid(here, name)
            here.restart_dockerd()
            await keeps.until_ready()
            assert pid(here, name) == before
            # by its own file: of the log a dockerd that ends so loses what it has read and not written yet
            written = len(counted(here, name).written)
            await until(lambda: len(counted(here, name).written) > written, "it counts on")
            numbers = counted(here, name).written
            assert numbers == list(range(1, len(numbers) + 1))
        finally:
            # said, since a key that is gone from the file keeps its value
            here.node.write(
                "/etc/docker/daemon.json", json.dumps({**json.loads(settings), "live-restore": False}), 0o644
            )
            here.run(["sh", "-c", "kill -HUP $(cat /run/docker.pid)"])
            await until(lambda: here.docker("info", "-f", "{{.LiveRestoreEnabled}}") == "false", "it is off again")
            here.node.write("/etc/docker/daemon.json", settings, 0o644)


async def test_an_agent_that_is_restarted_touches_nothing_and_without_one_a_stop_kills(keeps: Cluster) -> None:
    name = "hi-alone"
    async with hibernating(keeps, "b28", name, "--stop-timeout", "3") as here:
        before = pid(here, name)
        here.stop_agent()
        try:
            assert (state(here, name), pid(here, name)) == ("running", before)
            last = (await counts_on(here, name)).logged[-1]
            began = time.monotonic()
            here.docker("stop", name)
            assert time.monotonic() - began >= 3
            assert here.docker("inspect", "-f", "{{.State.ExitCode}}", name) == "137"
            here.docker("start", name)
            await until(lambda: 0 < newest(here, name) < last, "it has started anew")
        finally:
            here.start_agent()
            await keeps.until_ready()
        assert state(here, name) == "running"


async def test_it_is_woken_without_an_agent_and_told_of_when_there_is_one(keeps: Cluster) -> None:
    name = "hi-early"
    async with hibernating(keeps, "b28", name) as here:
        last = stop(here, name)
        here.stop_agent()
        try:
            here.docker("start", name)
            await until(lambda: last_logged(here, name) > last, "it counts on")
            assert here.run(["ls", f"{PLACE}/said"]).stdout != ""
        finally:
            here.start_agent()
            await keeps.until_ready()
        await until(lambda: here.run(["ls", f"{PLACE}/said"]).stdout == "", "it was told")
        await counts_on(here, name)


async def test_a_claim_that_let_nothing_run_is_taken_up_and_one_that_did_is_not(keeps: Cluster) -> None:
    """As a crash of the host leaves it, before and after the moment from which on its memory is used up."""
    name = "hi-claim"
    async with hibernating(keeps, "b28", name) as here:
        folder = f"{PLACE}/{here.docker('inspect', '-f', '{{.Id}}', name)}"
        last = stop(here, name)
        here.run(["mv", folder, f"{folder}.waking"])
        here.docker("start", name)
        await until(lambda: last_logged(here, name) > last, "it counts on")
        last = stop(here, name)
        here.run(["sh", "-c", f"mv {folder} {folder}.waking; touch {folder}.waking/released"])
        here.docker("start", name)
        await until(lambda: 0 < newest(here, name) < last, "it has started anew")


async def test_an_agent_that_is_killed_in_the_middle_sees_it_through_when_it_is_back(keeps: Cluster) -> None:
    name = "hi-killed"
    async with hibernating(keeps, "a26", name) as here:
        folder = f"{PLACE}/{here.docker('inspect', '-f', '{{.Id}}', name)}"
        with here.popen(["docker", "stop", name]) as stopping:
            look = f"until [ -e {folder}.part/images ]; do sleep 0.01; done"
            here.run(["timeout", "30", "sh", "-c", look])
            here.kill_agent()
            here.start_agent()
            await keeps.until_ready()
            assert await asyncio.to_thread(stopping.wait, 50) == 0
        last = last_logged(here, name)
        here.docker("start", name)
        await until(lambda: last_logged(here, name) > last, "it counts on")
        now = await counts_on(here, name)
        assert (now.missing, now.duplicated) == (0, 0)


async def test_one_that_is_adopted_hibernates_from_then_on(keeps: Cluster) -> None:
    """Refused as long as files would be lost by that."""
    here, name = keeps["b28"], "hi-adopted"
    remove(here, name)
    run_counter(here, name, "--restart", "always", "--env", "KEPT=yes")
    try:
        await counts_on(here, name)
        refused = run(keeps, "b28", f"transship adopt {name} --yes", check=False)
        assert refused.returncode == 2
        assert "/count" in refused.stderr
        run(keeps, "b28", f"transship adopt {name} --yes --discard-files")
        assert "KEPT=yes" in here.docker("inspect", "-f", "{{.Config.Env}}", name)
        assert here.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name) == "always"
        await until(lambda: newest(here, name) > 5, "it counts")
        last = stop(here, name)
        here.docker("start", name)
        await until(lambda: last_logged(here, name) > last + 3, "it counts on")
        assert here.docker("ps", "--all", "--quiet", "--filter", f"name={name}.before").strip() == ""
    finally:
        remove(here, name)
