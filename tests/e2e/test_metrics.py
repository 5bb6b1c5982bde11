"""What Prometheus and a log collector see of real moves."""

import json
from typing import Any

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from protocol.errors import ErrorCode
from tests.e2e.support import clean, counts_on, until

A, B = "host-a", "host-b"
NAME = "watched"


def figures(host: Host) -> dict[str, float]:
    text = host.run(["curl", "--silent", "--fail", "http://127.0.0.1:9469/metrics"]).stdout
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def lines(host: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.agent_log().splitlines()]


async def test_moves_are_counted_where_they_leave_and_each_log_line_names_its_move(seen: Cluster) -> None:
    run_counter(seen[A], NAME, mib=16)
    await counts_on(seen[A], NAME)
    before, there_before = figures(seen[A]), figures(seen[B])
    reply = await seen.migrate(NAME, A, B)
    assert reply.kind is ReplyKind.FINISHED, reply.error
    assert reply.report is not None
    await counts_on(seen[B], NAME)
    await clean(seen, A, B)
    there, here = figures(seen[B]), figures(seen[A])

    def more(name: str) -> float:
        return here[name] - before.get(name, 0)

    assert more('transship_migrations_total{result="done",strategy="cold"}') == 1
    from_there = 'transship_migrations_total{result="done",strategy="cold"}'
    assert there[from_there] == there_before[from_there]
    assert more('transship_blackout_seconds_count{strategy="cold"}') == 1
    blackout_ms = 1000 * more('transship_blackout_seconds_sum{strategy="cold"}')
    assert abs(blackout_ms - reply.report.blackout_ms) < 0.01
    assert more("transship_sent_bytes_total") == reply.report.wire_bytes
    received = "transship_received_bytes_total"
    assert there[received] - there_before[received] >= 16 << 20
    assert more('transship_migration_phase_seconds_count{phase="frozen"}') == 1
    assert more("transship_journal_write_seconds_count") >= 8
    for figure in (here, there):
        assert figure["transship_docker_connected"] == figure["transship_broker_connected"] == 1
        assert figure['transship_migrations_running{role="source"}'] == 0
    assert there['transship_containers{state="running"}'] == 1

    refused = await seen.migrate(NAME, B, B)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.SAME_HOST
    seen[B].ensure_image("busybox")
    seen[B].docker("run", "--detach", "--tty", "--name", "tty", "busybox", "sleep", "600")
    refused = await seen.migrate("tty", B, A)
    assert refused.error is not None
    none = 'transship_migrations_total{result="refused",strategy="none"}'
    assert figures(seen[B])[none] - there.get(none, 0) == 1
    seen[B].docker("rm", "--force", "tty", NAME)

    assert reply.migration is not None
    _every_line_of_the_move(lines(seen[A]), reply.migration, ("+ ", "runc", "> docker", "> peer", "frozen as source"))
    _every_line_of_the_move(lines(seen[B]), reply.migration, ("> docker", "< peer", "running as target"))


def _every_line_of_the_move(log: list[dict[str, Any]], migration: str, wanted: tuple[str, ...]) -> None:
    """All that the agent did while nothing but this move was under way."""
    ours = [line for line in log if line.get("migration") == migration]
    text = "\n".join(line["message"] for line in ours)
    for word in wanted:
        assert word in text, f"no line with {word} carries the move's id"
    strangers = [line for line in log if migration in line["message"] and line.get("migration") != migration]
    assert not strangers, "lines about the move that do not carry its id"


async def test_a_dead_docker_and_a_dead_broker_show(seen: Cluster) -> None:
    seen.lab.broker.stop()
    try:
        await until(lambda: figures(seen[A])["transship_broker_connected"] == 0, "the broker is seen to be away")
    finally:
        seen.lab.broker.start()
    await until(lambda: figures(seen[A])["transship_broker_connected"] == 1, "the broker is seen to be back", 60)
    seen[B].stop_dockerd()
    try:
        await until(lambda: figures(seen[B])["transship_docker_connected"] == 0, "dockerd is seen to be away")
    finally:
        seen[B].start_dockerd()
    await until(lambda: figures(seen[B])["transship_docker_connected"] == 1, "dockerd is seen to be back", 60)
