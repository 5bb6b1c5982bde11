"""Life around a container goes on: probes of its health, commands in it, Compose; and the kernel's settings for it."""

import asyncio
import json
from typing import Any

from lab.cluster import Cluster
from lab.host import Host
from protocol.commands import ReplyKind
from protocol.errors import ErrorCode
from tests.e2e.archives import give_compose
from tests.e2e.fidelity import idle, inspect, move, move_all, remove, stays
from tests.e2e.support import clean, until

NAME = "alive"


def health(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = inspect(host, name)["State"]["Health"]
    return found


async def test_probes_go_on_and_count_no_failure_of_the_move(pair: Cluster) -> None:
    """Often, fast and slow, so that some run just then: one that has begun is waited for, none fails on the target."""
    probes = {"quick": ("true", "50ms"), "slow": ("sleep 0.3", "60ms"), "sick": ("false", "100ms")}
    try:
        for name, (command, interval) in probes.items():
            options = (f"--health-cmd={command}", f"--health-interval={interval}", "--health-retries=2")
            idle(pair["a26"], name, *options)
        wanted = {"quick": "healthy", "slow": "healthy", "sick": "unhealthy"}
        for source, target in (("a26", "b28"), ("b28", "a26")):
            for name, state in wanted.items():
                await until(lambda: health(pair[source], name)["Status"] == state, f"{name} is {state}")  # noqa: B023
            await move_all(pair, probes, source, target)
            for name, state in wanted.items():
                await until(lambda: health(pair[target], name)["Status"] == state, f"{name} is {state}")  # noqa: B023
                failed = [entry for entry in health(pair[target], name)["Log"] if entry["ExitCode"] != 0]
                assert not failed or name == "sick", failed
        await clean(pair, "a26", "b28")
    finally:
        remove(pair, *probes)


async def test_a_command_in_it_is_refused_or_waited_for(pair: Cluster) -> None:
    here, there = pair["b28"], pair["a26"]
    try:
        idle(here, NAME)
        here.docker("exec", "--detach", NAME, "sleep", "1000")
        assert (await stays(pair, NAME, "b28", "a26", ErrorCode.BUSY, "sleep 1000")).hint
        moving = asyncio.create_task(pair.migrate(NAME, "b28", "a26", execs="wait"))
        done, _ = await asyncio.wait({moving}, timeout=1.5)
        assert not done, "it waits"
        [pid] = [row[0] for row in processes(here, NAME) if row[1:] == ["sleep", "1000"]]
        here.run(["kill", pid])
        reply = await moving
        assert reply.kind is ReplyKind.FINISHED, reply.error
        there.docker("exec", "--detach", NAME, "sleep", "1000")
        assert "sleep 1000" in there.docker("top", NAME), "exec works on the target"
    finally:
        remove(pair, NAME)


def processes(host: Host, name: str) -> list[list[str]]:
    """Number on the host, and words, of each process of a container."""
    return [line.split() for line in host.docker("top", name, "-o", "pid,args").splitlines()[1:]]


SETTINGS = {
    "net.ipv4.ip_unprivileged_port_start": "80",
    "net.core.somaxconn": "777",
    "net.ipv4.conf.eth0.log_martians": "1",
    "kernel.msgmax": "4096",
}


async def test_kernel_settings_of_its_namespaces(pair: Cluster) -> None:
    """Those of --sysctl, and those that Docker sets for every container; as the container itself sees them."""
    names = [*SETTINGS, "net.ipv4.ping_group_range", "net.ipv4.ip_nonlocal_bind"]
    paths = ["/proc/sys/" + name.replace(".", "/") for name in names]
    try:
        idle(pair["a26"], NAME, *(f"--sysctl={name}={value}" for name, value in SETTINGS.items()))
        before = pair["a26"].docker("exec", NAME, "cat", *paths).splitlines()
        assert before[:4] == list(SETTINGS.values())
        for source, target in (("a26", "b28"), ("b28", "a26")):
            await move(pair, NAME, source, target)
            assert pair[target].docker("exec", NAME, "cat", *paths).splitlines() == before
    finally:
        remove(pair, NAME)


# Compose

PROJECT = """
name: shop
services:
  web:
    image: busybox
    command: ["sh", "-c", "while :; do echo tick; sleep 0.1; done"]
    volumes: ["data:/data"]
    networks: {front: {aliases: [shop]}}
    labels: {colour: blue}
    restart: unless-stopped
  idle:
    image: busybox
    command: ["tail", "-f", "/dev/null"]
    networks: [front]
volumes: {data: {}}
networks: {front: {}}
"""


def compose(host: Host, *words: str) -> str:
    return host.docker("compose", "--file=/srv/shop.yaml", "--progress=quiet", *words)


async def test_compose_goes_on_managing_it(pair: Cluster) -> None:
    """With the project file on the target: `ps`, `logs`, `restart`, and `up` finds nothing to do."""
    here, there = pair["a26"], pair["b28"]
    for host in (here, there):
        give_compose(host)
        host.node.write("/srv/shop.yaml", PROJECT)
        host.ensure_image("busybox")
    try:
        compose(here, "up", "--detach")
        compose(here, "exec", "web", "sh", "-c", "echo kept > /data/file")
        containers = [row["Name"] for row in rows(compose(here, "ps", "--format=json"))]
        assert sorted(containers) == ["shop-idle-1", "shop-web-1"]
        pids = {name: inspect(here, name)["State"]["Pid"] for name in containers}
        assert pids
        for name in containers:
            await move(pair, name, "a26", "b28")
        assert rows(compose(here, "ps", "--format=json")) == []
        found = {row["Service"]: row["State"] for row in rows(compose(there, "ps", "--format=json"))}
        assert found == {"web": "running", "idle": "running"}
        assert compose(there, "logs", "web").count("tick") > 3
        started = {name: inspect(there, name)["State"]["StartedAt"] for name in containers}
        ids = {name: inspect(there, name)["Id"] for name in containers}
        compose(there, "up", "--detach")
        assert {name: inspect(there, name)["Id"] for name in containers} == ids, "there is nothing to do"
        assert {name: inspect(there, name)["State"]["StartedAt"] for name in containers} == started
        assert compose(there, "exec", "web", "cat", "/data/file") == "kept"
        assert compose(there, "exec", "idle", "ping", "-c1", "shop").count("1 packets received") == 1
        compose(there, "restart", "--timeout=0", "web")
        assert inspect(there, "shop-web-1")["State"]["StartedAt"] != started["shop-web-1"]
        compose(there, "down", "--volumes", "--timeout=0")
        assert not [name for name in there.docker("volume", "ls", "-q").split() if name.startswith("shop")]
    finally:
        for host in (here, there):
            host.docker("compose", "--file=/srv/shop.yaml", "down", "--volumes", "--timeout=0", check=False)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
