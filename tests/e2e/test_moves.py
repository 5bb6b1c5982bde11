"""A running container moves, between every pair of engines and image stores, and is what it was."""

import asyncio
import itertools

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from tests.e2e.support import clean, counts_on, until

PAIRS = [
    ("a26", "b26"),
    ("a28", "b28"),
    ("a26", "b28"),
    ("a28", "b26"),
    ("a26", "c28"),
    ("a28", "c28"),
    ("c28", "a28"),
    ("c28", "b26"),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_container_counts_on_at_the_target(moves: Cluster, source: str, target: str) -> None:
    name = f"count-{source}-{target}"
    run_counter(moves[source], name)
    await counts_on(moves[source], name)
    reply = await moves.migrate(name, source, target)
    assert reply.kind is ReplyKind.FINISHED, reply.error
    await counts_on(moves[target], name)
    assert name not in moves[source].docker("ps", "--all", "--format", "{{.Names}}").split()
    await clean(moves, source, target)
    moves[target].docker("rm", "--force", name)


async def test_a_moved_container_moves_on_and_comes_back(moves: Cluster) -> None:
    name, way = "wanderer", ["a26", "b28", "a26", "b28", "c28", "a26"]
    run_counter(moves[way[0]], name)
    await counts_on(moves[way[0]], name)
    for source, target in itertools.pairwise(way):
        reply = await moves.migrate(name, source, target)
        assert reply.kind is ReplyKind.FINISHED, (source, target, reply.error)
        await counts_on(moves[target], name)
    await clean(moves, *set(way))
    moves[way[-1]].docker("rm", "--force", name)


async def test_two_containers_pass_each_other(moves: Cluster) -> None:
    run_counter(moves["a28"], "one")
    run_counter(moves["b26"], "other")
    await asyncio.gather(counts_on(moves["a28"], "one"), counts_on(moves["b26"], "other"))
    one, other = await asyncio.gather(moves.migrate("one", "a28", "b26"), moves.migrate("other", "b26", "a28"))
    assert one.kind is ReplyKind.FINISHED, one.error
    assert other.kind is ReplyKind.FINISHED, other.error
    await counts_on(moves["b26"], "one")
    await counts_on(moves["a28"], "other")
    await clean(moves, "a28", "b26")
    moves["b26"].docker("rm", "--force", "one")
    moves["a28"].docker("rm", "--force", "other")


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("b28", "a26")])
async def test_a_moved_container_is_docker_s_own(moves: Cluster, source: str, target: str) -> None:
    """Logs, exec, stop, a cold start and removal work as for any other container; the restart policy is its own."""
    name = f"own-{target}"
    run_counter(moves[source], name, "--restart", "on-failure:3", "--label", "colour=blue")
    await counts_on(moves[source], name)
    assert (await moves.migrate(name, source, target)).kind is ReplyKind.FINISHED
    host = moves[target]
    await counts_on(host, name)
    policy = host.docker("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", name)
    assert policy == '{"Name":"on-failure","MaximumRetryCount":3}'
    assert host.docker("inspect", "-f", "{{.Config.Labels.colour}}", name) == "blue"
    assert "python3" in host.docker("exec", name, "cat", "/proc/1/cmdline")
    host.docker("stop", "--time", "2", name)
    assert host.docker("inspect", "-f", "{{.State.Status}}", name) == "exited"
    logged = len(counted_logs(moves, target, name))
    host.docker("start", name)
    await until(lambda: len(counted_logs(moves, target, name)) > logged + 5, "it starts cold and counts again")
    assert counted_logs(moves, target, name)[logged] == 1, "a cold start begins at 1"
    host.docker("rm", "--force", name)
    await clean(moves, source, target)


def counted_logs(moves: Cluster, host: str, name: str) -> list[int]:
    return [int(line) for line in moves[host].docker("logs", name).split()]


async def test_restart_policy_restarts_it_on_the_target(moves: Cluster) -> None:
    name = "restarted"
    run_counter(moves["a28"], name, "--restart", "always")
    await counts_on(moves["a28"], name)
    assert (await moves.migrate(name, "a28", "b28")).kind is ReplyKind.FINISHED
    await clean(moves, "a28", "b28")
    host = moves["b28"]
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", name)
    host.run(["kill", "-9", pid])
    await until(
        lambda: (
            host.docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", name) not in (f"true {pid}", "false 0")
        ),
        "dockerd starts it again",
    )
    host.docker("rm", "--force", name)


async def test_a_large_container_moves_and_the_agents_stay_small(moves: Cluster) -> None:
    """2 GiB go across; neither agent ever holds more than 100 MiB."""
    name = "large"
    run_counter(moves["a28"], name, mib=2048)
    await counts_on(moves["a28"], name)
    reply = await moves.migrate(name, "a28", "b28")
    assert reply.kind is ReplyKind.FINISHED, reply.error
    await counts_on(moves["b28"], name)
    for host in ("a28", "b28"):
        assert agent_peak_mib(moves, host) < 100, host
    await clean(moves, "a28", "b28")
    moves["b28"].docker("rm", "--force", name)


ELSEWHERE = """
import os, sys, time
here = os.stat("/etc/hosts").st_ino
print("ready", flush=True)
while os.stat("/etc/hosts").st_ino == here:
    time.sleep(0.001)
print("elsewhere", flush=True)
sys.exit(7)
"""


async def test_what_ends_as_soon_as_it_runs_has_moved(moves: Cluster) -> None:
    """A program may end by itself at once on the target: that is its own end, with its code, there and once."""
    name = "ends-there"
    host = moves["a28"]
    host.ensure_image("py")
    host.docker("run", "-d", "--name", name, "py", "python3", "-c", ELSEWHERE)
    try:
        await until(lambda: "ready" in host.docker("logs", name), "it runs")
        reply = await moves.migrate(name, "a28", "b26")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        there = moves["b26"]
        state = "{{.State.Status}} {{.State.ExitCode}}"
        await until(lambda: there.docker("inspect", "-f", state, name) == "exited 7", "it has ended by itself")
        assert there.docker("logs", name).split() == ["ready", "elsewhere"]
        assert not host.docker("ps", "--all", "--quiet", "--filter", f"name={name}")
        await clean(moves, "a28", "b26")
    finally:
        for each in ("a28", "b26"):
            moves[each].docker("rm", "--force", name, check=False)


def agent_peak_mib(moves: Cluster, host: str) -> float:
    script = "for p in /proc/[0-9]*; do grep -qz 'transship$' $p/cmdline 2>/dev/null && grep VmHWM $p/status; done"
    lines = moves[host].run(["sh", "-c", script], check=False).stdout.splitlines()
    assert lines, "there is an agent"
    return max(int(line.split()[1]) / 1024 for line in lines)
