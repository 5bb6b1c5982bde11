"""What the fidelity tests share: containers that wait, moves of many at once, and how they look before and after."""

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.migration.fields import page
from lab.cluster import Cluster
from lab.host import Host
from protocol.commands import Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode, ErrorInfo
from tests.e2e.support import until

WAIT = ("busybox", "tail", "-f", "/dev/null")
"""Image and command of a container that does nothing, for as long as it is let."""
PAIR_AGENT = {"bind_copy": ["/srv/copied"], "limits": {"migrations": 8}}
"""The settings of every agent of the pair."""
AT_ONCE = 3
PAGE = Path(__file__).parents[2] / "docs/fidelity.md"


def inspect(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.docker("inspect", name))[0]
    return found


def idle(host: Host, name: str, *options: str) -> None:
    """Run a container that does nothing."""
    host.ensure_image("busybox")
    host.docker("run", "-d", "--name", name, *options, *WAIT)


async def stays(cluster: Cluster, name: str, source: str, target: str, code: ErrorCode, said: str) -> ErrorInfo:
    """A move is refused by this code and these words, and the container runs on, untouched."""
    pid = inspect(cluster[source], name)["State"]["Pid"]
    reply = await cluster.migrate(name, source, target)
    assert reply.error is not None, "it moved"
    assert (reply.error.code, reply.error.consequence) == (code, Consequence.UNTOUCHED), reply.error
    assert said in reply.error.message, reply.error
    assert inspect(cluster[source], name)["State"]["Pid"] == pid
    return reply.error


async def move(cluster: Cluster, name: str, source: str, target: str, **fields: Any) -> Reply:
    """Move it, and wait until the target has given it its restart policy back, which is the last thing that it does."""
    policy = restart_policy(cluster[source], name)
    reply = await cluster.migrate(name, source, target, **fields)
    assert reply.kind is ReplyKind.FINISHED, (name, reply.error)
    await until(lambda: restart_policy(cluster[target], name) == policy, f"{name} has its restart policy")
    return reply


def restart_policy(host: Host, name: str) -> str:
    return host.docker("inspect", "--format", "{{.HostConfig.RestartPolicy}}", name)


async def move_all(cluster: Cluster, names: Iterable[str], source: str, target: str) -> dict[str, Reply]:
    """Move many, some at a time, and all to their end before anything is said of one that failed."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[str, Reply]:
        async with turn:
            return name, await move(cluster, name, source, target)

    ended = await asyncio.gather(*map(one, names), return_exceptions=True)
    for found in ended:
        if isinstance(found, BaseException):
            raise found
    return dict(found for found in ended if not isinstance(found, BaseException))


def notes(reply: Reply) -> tuple[str, ...]:
    assert reply.report is not None
    return reply.report.notes


def sent(reply: Reply, part: str) -> int:
    """Bytes of a part."""
    assert reply.report is not None
    return sum(one.bytes for one in reply.report.parts if one.name == part)


def told(shown: Mapping[str, Sequence[str]]) -> None:
    """docs/fidelity.md says of these fields by which containers they were shown; with TRANSSHIP_WRITE_DOCS it will."""
    text = PAGE.read_text()
    found = page(text, shown)
    if os.environ.get("TRANSSHIP_WRITE_DOCS"):
        PAGE.write_text(found)
    else:
        assert found == text, "run this test with TRANSSHIP_WRITE_DOCS=1"


def remove(cluster: Cluster, *names: str) -> None:
    for host in cluster.lab.hosts.values():
        host.docker("rm", "--force", "--volumes", *names, check=False)
