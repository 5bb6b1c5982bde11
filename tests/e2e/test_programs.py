"""redis, nginx and PostgreSQL move under load, several times; their clients lose nothing, not even the connection."""

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.host import Host
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from tests.e2e.support import clean, until

LOADS = Path(__file__).with_name("loads.py")
ADDRESS = "10.77.0.130"
MAC = "02:42:0a:4d:00:82"
WAY = ["u26", "u28", "u26", "u28"]
POSTGRES = (
    "echo 'host all all 0.0.0.0/0 trust' >> /etc/postgresql/17/main/pg_hba.conf; "
    "mkdir -p /run/postgresql; chown postgres /run/postgresql; "
    'exec su postgres -c "/usr/lib/postgresql/17/bin/postgres -D /var/lib/postgresql/17/main '
    "-c config_file=/etc/postgresql/17/main/postgresql.conf -c listen_addresses='*'\""
)


@pytest.fixture(scope="module")
def outside(programs: Cluster) -> Cluster:
    """A macvlan network of the same name on both hosts: addresses that move along."""
    for host in programs.lab.hosts.values():
        host.ensure_image("zoo")
        make_macvlan(host)
    return programs


def make_macvlan(host: Host) -> None:
    host.docker(
        *("network", "create", "--driver", "macvlan", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.1"),
        *("--opt", "parent=eth0", "outside"),
    )


def run(host: Host, name: str, *command: str) -> None:
    network = ["--network", "outside", "--ip", ADDRESS, "--mac-address", MAC]
    host.docker("run", "-d", "--name", name, *network, "zoo", *command)


async def move_about(cluster: Cluster, name: str) -> None:
    for source, target in itertools.pairwise(WAY):
        reply = await cluster.migrate(name, source, target)
        assert reply.kind is ReplyKind.FINISHED, (source, target, reply.error)
        assert reply.report is not None
        assert reply.report.tcp == "keep"
    await clean(cluster, "u26", "u28")


async def load(cluster: Cluster, kind: str) -> "asyncio.Task[dict[str, Any]]":
    """Start a client at the lab's client machine; what it found out, when it has ended."""
    argv = [sys.executable, str(LOADS), kind, ADDRESS, "25"]

    def run_it() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cluster.lab.client_run(argv, timeout=120).stdout)
        return found

    task = asyncio.create_task(asyncio.to_thread(run_it))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("redis", ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]),
        ("http", ["nginx", "-g", "daemon off;"]),
    ],
)
async def test_nothing_acknowledged_is_lost(outside: Cluster, kind: str, command: list[str]) -> None:
    run(outside["u26"], kind, *command)
    try:
        client = await load(outside, kind)
        await move_about(outside, kind)
        found = await client
        assert found["ok"], found
        assert found["acknowledged"] > 500, found
    finally:
        remove(outside, kind)


async def test_postgresql_keeps_every_row_and_the_session(outside: Cluster) -> None:
    """Rows are inserted one by one over one session; each one that was acknowledged is there once."""
    name = "postgres"
    run(outside["u26"], name, "sh", "-c", POSTGRES)
    client = outside["u28"]
    client.docker("run", "-d", "--name", "psql", "--network", "outside", "--ip", "10.77.0.131", "zoo", "sleep", "1000")
    psql = f"psql -h {ADDRESS} -U postgres -qtA -v ON_ERROR_STOP=1"
    try:
        await until(
            lambda: "1" in client.docker("exec", "psql", "sh", "-c", f"{psql} -c 'select 1'", check=False), "it answers"
        )
        client.docker("exec", "psql", "sh", "-c", f"{psql} -c 'create table t (n int)'")
        rows = (
            "i=0; end=$(($(date +%s) + 25)); while [ $(date +%s) -lt $end ]; do i=$((i+1)); "
            f'echo "insert into t values ($i) returning n;"; sleep 0.02; done | {psql}'
        )
        inserting = asyncio.create_task(
            asyncio.to_thread(client.run, ["docker", "exec", "psql", "sh", "-c", rows], timeout=120)
        )
        await move_about(outside, name)
        acknowledged = [int(line) for line in (await inserting).stdout.split()]
        stored = client.docker("exec", "psql", "sh", "-c", f"{psql} -c 'select n from t order by n'")
        assert acknowledged == list(range(1, len(acknowledged) + 1))
        assert len(acknowledged) > 200
        assert [int(line) for line in stored.split()] == acknowledged
    finally:
        client.docker("rm", "--force", "psql", check=False)
        remove(outside, name)


async def test_an_address_that_is_taken_on_the_target_is_refused(outside: Cluster) -> None:
    run(outside["u26"], "mine", "sleep", "1000")
    run(outside["u28"], "theirs", "sleep", "1000")
    try:
        before = outside["u26"].docker("inspect", "-f", "{{.State.Pid}}", "mine")
        reply = await outside.migrate("mine", "u26", "u28")
        assert reply.error is not None
        assert reply.error.code is ErrorCode.ADDRESS_TAKEN, reply.error
        assert reply.error.consequence is Consequence.UNTOUCHED
        assert outside["u26"].docker("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "mine") == f"{before} running"
        await clean(outside, "u26", "u28")
    finally:
        remove(outside, "mine")
        remove(outside, "theirs")


def remove(cluster: Cluster, name: str) -> None:
    for host in cluster.lab.hosts.values():
        host.docker("rm", "--force", name, check=False)
