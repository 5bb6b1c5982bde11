"""A rehearsal: all of a move but its decision. The container never notices more than its dump; nothing is left."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import TRANSSHIP, Cluster
from lab.host import Host
from lab.macvlan import Place, ensure_network
from lab.soak import Streams
from lab.workloads import counted, run_counter
from protocol.commands import Reply, ReplyKind
from protocol.errors import ErrorCode, Why
from protocol.status import Phase
from tests.e2e.archives import controller
from tests.e2e.fidelity import inspect, remove
from tests.e2e.support import clean, counts_on

A, B = "a26", "b28"
ACROSS = [(A, B), (B, A)]
NAME = "rehearsed"


def there_since(host: Host, began: float) -> list[dict[str, Any]]:
    """What dockerd has told of containers and networks."""
    kinds = ["--filter", "type=container", "--filter", "type=network"]
    told = host.docker(
        "events", "--since", f"{began:.3f}", "--until", f"{time.time():.3f}", *kinds, "--format", "{{json .}}"
    )
    return [json.loads(line) for line in told.splitlines()]


def belongings(host: Host) -> list[str]:
    listed = [host.docker("ps", "--all", "--format", "{{.Names}}"), host.docker("volume", "ls", "--quiet")]
    return sorted(" ".join([*listed, host.docker("network", "ls", "--format", "{{.Name}}")]).split())


def check_ended_well(reply: Reply) -> None:
    assert reply.kind is ReplyKind.FINISHED, reply.error
    report = reply.report
    assert report is not None
    assert report.phases[-1].phase is Phase.ROLLED_BACK
    assert Phase.COMMITTED not in {each.phase for each in report.phases}
    assert report.held_ms is not None
    assert report.rehearsed_ms is not None
    assert 0 < report.held_ms < report.rehearsed_ms
    assert report.restore_ms
    assert report.predicted_blackout_ms
    assert report.blackout_ms is None


@pytest.mark.parametrize(("source", "target"), ACROSS)
async def test_a_container_is_rehearsed_and_runs_on_as_if_nothing_had_been(
    moves: Cluster, source: str, target: str
) -> None:
    here, there = moves[source], moves[target]
    run_counter(here, NAME, "--restart", "unless-stopped", "--volume", "rehearsed:/data", "--publish", "8096:80")
    try:
        await counts_on(here, NAME)
        before, had, began = inspect(here, NAME), belongings(there), time.time()
        reply = await moves.migrate(NAME, source, target, rehearse=True)
        check_ended_well(reply)
        assert reply.report is not None
        after = inspect(here, NAME)
        for key in ("Pid", "StartedAt", "Paused"):
            assert after["State"][key] == before["State"][key]
        assert after["HostConfig"]["RestartPolicy"] == before["HostConfig"]["RestartPolicy"]
        await counts_on(here, NAME, taken_back=1)
        longest = max(counted(here, NAME, taken_back=1).gaps_s)
        assert longest * 1000 < reply.report.held_ms + 1000, "no more than the dump"
        assert belongings(there) == had
        told = there_since(there, began)
        names = {one["Actor"]["Attributes"].get("name", "") for one in told if one["Type"] == "container"}
        assert names == {f"{NAME}.rehearsal-{str(reply.migration).removeprefix('m-')}"}
        joined = {one["Actor"]["Attributes"]["name"] for one in told if one["Type"] == "network"}
        assert joined <= {"none"}, "no network has seen it"
        await clean(moves, source, target)
    finally:
        remove(moves, NAME)
        here.docker("volume", "rm", "--force", "rehearsed", check=False)


async def test_connections_go_on_through_a_rehearsal(moves: Cluster, tmp_path: Path) -> None:
    """Its addresses stand on the target too for a moment, on lo: no neighbour hears of them, no byte is lost."""
    for host in (A, B):
        ensure_network(moves[host])
    streams = Streams(moves, NAME, Place(158), tmp_path)
    try:
        streams.start(A)
        await streams.flowing()
        reply = await moves.migrate(NAME, A, B, rehearse=True, tcp="keep")
        check_ended_well(reply)
        await streams.flowing()
        for kind, found in streams.end().items():
            assert found["ok"], (kind, found)
            assert found["received"] > 100, (kind, found)
        await clean(moves, A, B)
    finally:
        streams.close()
        remove(moves, NAME)


async def test_what_stands_against_the_move_stands_against_its_rehearsal(moves: Cluster) -> None:
    for host in (A, B):
        moves[host].ensure_image("busybox")
    moves[A].docker("run", "--detach", "--name", NAME, "busybox", "sleep", "1000")
    moves[B].docker("create", "--name", NAME, "busybox", "true")
    try:
        typed = [TRANSSHIP, "migrate", NAME, "--from", A, "--to", B, "--rehearse", "--json"]
        ran = await asyncio.to_thread(moves[A].run, typed, env=controller(moves), check=False, timeout=60)
        last = json.loads(ran.stdout.splitlines()[-1])
        assert ran.returncode == 2
        assert last["error"]["code"] == ErrorCode.NAME_TAKEN
        assert [reason["why"] for reason in last["error"]["reasons"]] == [Why.NAME_TAKEN]
    finally:
        remove(moves, NAME)
    await clean(moves, A, B)
