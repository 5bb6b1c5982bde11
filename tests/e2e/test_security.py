"""On real hosts: no memory left anywhere, certificates changed under way."""

import asyncio
import signal
import threading
import time

from agent.base import pki
from lab.broker import PKI
from lab.cluster import Cluster
from lab.host import Host
from lab.shell import PATIENCE
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from protocol.status import Event, HostStatus, Phase
from tests.e2e.support import clean, counts_on, until
from tests.e2e.test_failures import replaced

A, B = "a26", "b28"
# Everything that may have been written by an agent or for it; not the container's own disk, of which memory is no part.
PLACES = "/run/transship /var/lib/transship /var/log /tmp /var/tmp /root /dev/shm /var/lib/docker/tmp"
HOLDER = """
import secrets, time
word = "w" + secrets.token_hex(12)
kept = [(word + str(number)).encode() for number in range(2000)]
print(word[::-1], flush=True)
while True:
    time.sleep(0.05)
"""


# --- memory


async def hold(host: Host, name: str) -> str:
    """A container with a word in its memory that is nowhere else; it has told us backwards."""
    host.ensure_image("py")
    host.docker("run", "--detach", "--name", name, "py", "python3", "-c", HOLDER)
    await until(lambda: bool(host.docker("logs", name).strip()), "it has its word")
    return host.docker("logs", name).strip()[::-1]


def left(host: Host, word: str) -> list[str]:
    """Files in which the word stands, and mounts in which it could."""
    found = host.run(["sh", "-c", f"grep -rlaF {word} {PLACES} 2>/dev/null"], check=False).stdout.splitlines()
    mounts = host.node.read("/proc/mounts").splitlines()
    return [*found, *(line for line in mounts if line.startswith("transship "))]


async def no_memory_left(moves: Cluster, word: str) -> None:
    for name in (A, B):
        await until(lambda host=moves[name]: not left(host, word), f"nothing of its memory is left on {name}", 40)


class Images:
    """What CRIU's images are like while they are there: their modes, and on which kind of file system they lie."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._go_on = threading.Event()
        self.seen: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        script = "find /run/transship -name '*.img' -printf '%m %F %p\\n' 2>/dev/null"
        while not self._go_on.is_set():
            for line in self._host.run(["sh", "-c", script], check=False).stdout.splitlines():
                mode, system, _ = line.split(" ", 2)
                self.seen.add((mode, system))

    def end(self) -> set[tuple[str, str]]:
        self._go_on.set()
        self._thread.join()
        return self.seen


async def test_memory_is_wiped_on_every_end(moves: Cluster) -> None:
    name = "mind"
    word = await hold(moves[A], name)
    images = [Images(moves[host]) for host in (A, B)]
    try:
        # failure
        with replaced(moves[B], "/usr/sbin/criu", 'case "$1" in swrk) exit 1;; esac; exec /usr/sbin/criu.real "$@"'):
            reply = await moves.migrate(name, A, B)
            assert reply.kind is ReplyKind.FAILED
        await no_memory_left(moves, word)
        # cancel, while it is frozen or a little later: whichever comes first, it is one of the two ends
        async with moves.moving(name, A, B) as moving:
            await moving.until(Phase.FROZEN, Phase.DONE)
            await moving.cancel()
            ended = (await moving.end()).kind
        await no_memory_left(moves, word)
        source, target = (B, A) if ended is ReplyKind.FINISHED else (A, B)
        # a crash of both agents in the middle, and their recovery
        async with moves.moving(name, source, target) as moving:
            await moving.until(Phase.FROZEN, Phase.DONE)
            for host in (A, B):
                moves[host].kill_agent()
        for host in (A, B):
            moves[host].start_agent()
        await moves.until_ready()
        await clean(moves, A, B, seconds=40)
        await no_memory_left(moves, word)
        # success
        there = A if name in moves[A].docker("ps", "--format", "{{.Names}}").split() else B
        reply = await moves.migrate(name, there, B if there == A else A)
        assert reply.kind is ReplyKind.FINISHED, reply.error
        await no_memory_left(moves, word)
    finally:
        seen = {one for looking in images for one in looking.end()}
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
    assert seen, "some of the images were seen while they were there"
    assert {mode for mode, _ in seen} <= {"600"}, seen
    assert {system for _, system in seen} == {"tmpfs"}, seen


# --- certificates


def renewed(moves: Cluster, name: str, days: int) -> tuple[str, str]:
    authority = moves.lab.broker.authority
    address = moves[name].node.address
    certificate, key = pki.issue(
        authority.ca_file.read_bytes(),
        (authority.folder / "ca.key").read_bytes(),
        name,
        [name, "localhost"],
        [address.v4, address.v6],
        days,
    )
    return certificate.decode(), key.decode()


async def status_of(moves: Cluster, name: str) -> HostStatus:
    async with asyncio.timeout(30 * PATIENCE), moves.controller() as controller:
        return next(host for host in await controller.hosts() if host.host == name)


async def test_certificates_change_under_a_running_move(moves: Cluster) -> None:
    """New ones on both hosts, for two days: taken up at once, said, and the move that runs meanwhile goes on."""
    name = "traveller"
    agents = {host: moves[host].node.daemon("transship-agent") for host in (A, B)}
    before = {host: (await status_of(moves, host)).certificates_until for host in (A, B)}
    events: list[Event] = []
    run_counter(moves[A], name, mib=200)
    try:
        await counts_on(moves[A], name)
        async with moves.controller() as listener:

            async def listen() -> None:
                async for event in listener.events():
                    events.append(event)

            listening = asyncio.create_task(listen())
            async with moves.moving(name, A, B, bandwidth=4_000_000) as moving:
                await moving.until(Phase.COPYING, Phase.FROZEN)
                for host in (A, B):
                    certificate, key = renewed(moves, host, 2)
                    moves[host].node.write(f"{PKI}/host.crt", certificate)
                    moves[host].node.write(f"{PKI}/host.key", key, 0o600)
                    agent = agents[host]
                    assert agent is not None
                    agent.signal(signal.SIGHUP)
                reply = await moving.end()
            assert reply.kind is ReplyKind.FINISHED, reply.error
            end = time.monotonic() + 30 * PATIENCE
            for host in (A, B):
                while not (found := await status_of(moves, host)).certificates_warning:
                    assert time.monotonic() < end, f"{host} does not warn"
                    await asyncio.sleep(0.2)
                assert found.certificates_until is not None
                assert before[host] is None or found.certificates_until < before[host]
                assert "ends in 1 days" in found.certificates_warning
            while {event.host for event in events if event.kind == "certificates-warning"} != {A, B}:
                assert time.monotonic() < end, events
                await asyncio.sleep(0.2)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await counts_on(moves[B], name)
        back = await moves.migrate(name, B, A)
        assert back.kind is ReplyKind.FINISHED, back.error
        for host in (A, B):
            assert moves[host].node.daemon("transship-agent") == agents[host], "nobody was restarted"
            shown = f"openssl s_client -connect {moves[host].node.address.v4}:7443 -tls1_3 </dev/null 2>/dev/null"
            enddate = moves[A].run(["sh", "-c", f"{shown} | openssl x509 -noout -checkend {3 * 86400}"], check=False)
            assert enddate.returncode == 1, f"what {host} shows ends within three days: {enddate.stdout}"
            old = moves[A].run(["sh", "-c", shown.replace("tls1_3", "tls1_2") + " | grep -c BEGIN"], check=False)
            assert old.stdout.strip() == "0", "nothing older than TLS 1.3"
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
            certificate, key = renewed(moves, host, 365)
            moves[host].node.write(f"{PKI}/host.crt", certificate)
            moves[host].node.write(f"{PKI}/host.key", key, 0o600)


# --- replays
