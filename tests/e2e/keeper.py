"""A container that holds memory nobody can guess, says its hash when it is asked to, and counts meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from lab.cluster import Cluster, Moving
from lab.host import Host
from lab.workloads import has_stack_at_page
from protocol.commands import ReplyKind
from protocol.status import ENDED, Phase
from tests.e2e.support import clean, counts_on, until

MIB = 192
STARTS = 5
PROGRAM = """
import hashlib, os, threading, time
memory = bytearray(os.urandom({mib} << 20))
if not os.path.exists("/ask"):
    os.mkfifo("/ask")
def say():
    with open("/hashes", "a") as file:
        print(hashlib.sha256(memory).hexdigest(), file=file)
def asked():
    while True:
        with open("/ask") as fifo:
            fifo.read()
        say()
say()
threading.Thread(target=asked, daemon=True).start()
lines, number = open("/count", "a", buffering=1), 0
while True:
    number += 1
    print(number, flush=True)
    lines.write(f"{{number}} 0\\n")
    time.sleep(0.005)
"""


async def until_it_follows(host: Host, name: str, start: Callable[[], Awaitable[None]]) -> None:
    """Start a container, again where CRIU would take it for a stack: that is so of one thread in 256."""
    for _ in range(STARTS):
        await start()
        if not has_stack_at_page(host, name):
            return
        host.docker("rm", "--force", "--volumes", name)
    raise AssertionError(f"{STARTS} times {name} had a stack that begins with a page: the look at it must be wrong")


def hashes(host: Host, name: str) -> list[str]:
    return host.docker("exec", name, "cat", "/hashes", check=False).split()


def names(host: Host) -> list[str]:
    """Of all containers, whether they run or not."""
    return host.docker("ps", "--all", "--format", "{{.Names}}").split()


@asynccontextmanager
async def keeper(
    moves: Cluster, name: str, *options: str, source: str, others: Sequence[str], mib: int = MIB
) -> AsyncIterator[str]:
    """Start one at `source`, whose memory follows in post-copy: its hash. It is gone from everywhere afterwards."""
    moves[source].ensure_image("py")
    program = PROGRAM.format(mib=mib)

    async def start() -> None:
        moves[source].docker("run", "-d", "--name", name, *options, "py", "python3", "-c", program)
        await until(lambda: bool(hashes(moves[source], name)), "its memory is filled")
        await counts_on(moves[source], name)

    try:
        await until_it_follows(moves[source], name, start)
        yield hashes(moves[source], name)[0]
    finally:
        for host in (source, *others):
            moves[host].docker("rm", "--force", name, check=False)


async def remembers(host: Host, name: str, wanted: str, *, taken_back: int = 0) -> None:
    """Every byte is what it was, and no number is missing or came twice."""
    before = len(hashes(host, name))
    host.docker("exec", name, "sh", "-c", "echo >/ask")
    await until(lambda: len(hashes(host, name)) > before, "it has looked at all of its memory")
    assert set(hashes(host, name)) == {wanted}
    await counts_on(host, name, taken_back=taken_back)


@asynccontextmanager
async def running(
    moves: Cluster, name: str, source: str, target: str, *, rate: str = "50mbit"
) -> AsyncIterator[Moving]:
    """A move on a slow link that has got as far as that the container runs, and most of its memory is at the source.

    All of it would take half a minute: heal the link once that is not needed any more.
    """
    moves.lab.slow(target, rate)
    try:
        async with moves.moving(name, source, target, strategy="postcopy") as move:
            status = await move.until(Phase.RUNNING, *ENDED)
            assert status.phase is Phase.RUNNING, status
            assert name in names(moves[source])
            yield move
    finally:
        moves.lab.heal(target)


async def arrives(moves: Cluster, move: Moving, name: str, source: str, target: str, digest: str) -> None:
    """The rest of its memory comes as fast as it goes; then it's all at the target, and nothing is left."""
    moves.lab.heal(target)
    end = await move.end()
    assert end.kind is ReplyKind.FINISHED, end.error
    await remembers(moves[target], name, digest)
    assert name not in names(moves[source])
    await clean(moves, source, target)
