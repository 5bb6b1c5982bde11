"""Connections survive a move in whatever state they are, and neighbours learn at once where the addresses are now."""

import asyncio
import contextlib
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.macvlan import Place, ensure_network
from lab.shell import LabError
from lab.soak import Streams, move_about
from protocol.commands import Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode
from tests.e2e.fidelity import remove
from tests.e2e.stream_console import PORT
from tests.e2e.stream_states import CASES
from tests.e2e.stream_support import (
    HOSTS,
    PROGRAM,
    Console,
    Frames,
    at_client,
    by_host,
    console,
    network_of,
)
from tests.e2e.support import clean, until
from tests.e2e.test_failures import replaced

WAY = ["a26", "b26", "b28", "a28", "a26", "b28", "b26"]
"""Within each engine, and across in both directions."""
ACROSS = [("a26", "b28"), ("b28", "a26")]
AT_ONCE = 5.0
"""Seconds; switches that have not learnt need up to five minutes."""


@pytest.fixture(scope="module")
def outside(moves: Cluster) -> Cluster:
    for host in HOSTS:
        ensure_network(moves[host])
    return moves


async def moved(cluster: Cluster, name: str, source: str, target: str, becomes: str = "keep", **fields: str) -> Reply:
    """Move, and see that nothing of the move is left in the container's network."""
    before = network_of(cluster[source], name)
    reply = await cluster.migrate(name, source, target, **fields)
    assert reply.kind is ReplyKind.FINISHED, reply.error
    assert reply.report is not None
    assert reply.report.tcp == becomes
    assert network_of(cluster[target], name) == before
    assert before["tables"] == []
    return reply


async def test_no_record_is_lost_in_many_moves(outside: Cluster, tmp_path: Path) -> None:
    """At full speed in both directions, IPv4 and IPv6, server inside and outside. More moves: ./scripts/soak."""
    name = "records"
    streams = Streams(outside, name, Place(150), tmp_path)
    try:
        streams.start(WAY[0])
        await move_about(outside, name, WAY, streams)
        for kind, found in streams.end().items():
            assert found["ok"], (kind, found)
            assert found["sent"] > 100, (kind, found)
            assert found["received"] > 100, (kind, found)
        await clean(outside, *HOSTS)
    finally:
        streams.close()
        remove(outside, name)


@pytest.mark.parametrize(("source", "target"), ACROSS)
async def test_connections_in_every_state_survive(outside: Cluster, source: str, target: str) -> None:
    with console(outside, source, "states", Place(151)) as inside:
        made = {}
        for number, case in enumerate(CASES):
            for v6 in (False, True):
                checks = case(inside, 7200 + 2 * number + v6, v6)
                await asyncio.to_thread(next, checks)
                made[f"{case.__name__} over IPv{6 if v6 else 4}"] = checks
        await moved(outside, "states", source, target)
        wrong = {}
        for name, checks in reversed(made.items()):  # the last ones have the least time
            try:
                await asyncio.to_thread(next, checks, None)
            except (AssertionError, OSError, LabError) as error:
                wrong[name] = f"{type(error).__name__}: {error}"
        assert not wrong
        await clean(outside, source, target)


# Connections that come and go while the container moves

SERVER = """
def serve_short(server):
    while True:
        connection, _ = server.accept()
        number = connection.recv(100)
        connection.sendall(number + bytes(100_000))
        connection.close()

short = socket.create_server(("", 7400), family=socket.AF_INET6, dualstack_ipv6=True)
for _ in range(3):
    threading.Thread(target=serve_short, args=(short,), daemon=True).start()
"""


class Callers:
    """Clients that connect, ask, read the answer to its end, and come again at once."""

    def __init__(self, inside: Console, count: int) -> None:
        self.done = 0
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(inside, number % 2 == 1), daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, inside: Console, v6: bool) -> None:
        try:
            at_client(inside.cluster, lambda: self._call(inside.address(v6)))
        except (OSError, AssertionError) as error:
            self.wrong.append(f"after {self.done}: {type(error).__name__}: {error}")

    def _call(self, address: str) -> None:
        while not self._stop.is_set():
            number = b"%8d" % self.done
            with socket.create_connection((address, 7400), timeout=30) as connection:
                connection.sendall(number)
                with connection.makefile("rb") as file:
                    answer = file.read()
            assert len(answer) == 100_008, f"{len(answer)} bytes"
            assert answer.startswith(number), answer[:8]
            self.done += 1

    def beyond(self, count: int) -> bool:
        return self.done > count or bool(self.wrong)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


async def test_short_connections_are_answered_or_wait(outside: Cluster) -> None:
    """None is refused, reset or cut short: not before it is accepted, and not while its last bytes are on their way."""
    with console(outside, "a26", "short", Place(152)) as inside:
        inside.do(SERVER)
        callers = Callers(inside, 4)
        try:
            for source, target in ACROSS:
                before = callers.done
                reply = await moved(outside, "short", source, target)
                assert reply.report is not None
                assert not reply.report.notes
                await until(partial(callers.beyond, before + 20), "they are answered")
        finally:
            callers.end()
        assert not callers.wrong
        await clean(outside, *HOSTS)


async def test_a_program_that_does_not_accept_is_not_moved(outside: Cluster) -> None:
    """CRIU would leave behind what waits; so it is said, and the container was never frozen for it."""
    with console(outside, "a28", "deaf", Place(153)) as inside:
        inside.do("deaf = socket.create_server(('', 7500))")
        waiting = inside.connect(7500)
        waiting.sendall(b"acknowledged")
        reply = await outside.migrate("deaf", "a28", "b26")
        assert reply.error is not None
        assert reply.error.code is ErrorCode.FREEZE_FAILED
        assert reply.error.consequence is Consequence.TAKEN_BACK
        assert "accepted" in reply.error.message
        inside.connect(7500)  # nobody is turned away any more
        assert inside.do("deaf.accept()[0].recv(100).decode()") == "acknowledged"
        inside.do("deaf.accept()")
        await moved(outside, "deaf", "a28", "b26")
        await clean(outside, "a28", "b26")


# The policies


@pytest.mark.parametrize(("label", "fields"), [("", {"tcp": "refuse"}), ("refuse", {})], ids=["command", "label"])
async def test_refuse_moves_only_what_has_no_connection(outside: Cluster, label: str, fields: dict[str, str]) -> None:
    with console(outside, "a28", "refuse", Place(154), "--label", f"transship.tcp={label or 'close'}") as inside:
        assert inside.do("1") == 1
        reply = await outside.migrate("refuse", "a28", "b26", **fields)
        assert reply.error is not None
        assert reply.error.code is ErrorCode.NOT_MIGRATABLE
        assert "1 TCP connection" in reply.error.message
        assert reply.error.consequence is Consequence.UNTOUCHED
        inside.close()
        await until(lambda: connections(outside["a28"], "refuse") == [], "the connection is gone")
        await moved(outside, "refuse", "a28", "b26", **fields)


def connections(host: Host, name: str) -> list[str]:
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", name)
    lines = host.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ss", "-Htan"]).stdout.splitlines()
    return [line for line in lines if not line.startswith(("LISTEN", "TIME-WAIT"))]


async def test_close_closes_and_the_server_listens_on(outside: Cluster) -> None:
    """Though the address moves along; both sides learn at once that the connection is gone."""
    with console(outside, "b26", "close", Place(155)) as inside:
        other = inside.pair("closed", 7600)
        inside.do("answers = []")
        inside.do("threading.Thread(target=lambda: answers.append(closed.recv(100)), daemon=True).start()")
        await moved(outside, "close", "b26", "a28", becomes="close", tcp="close")
        with pytest.raises(ConnectionResetError):
            other.recv(100)  # without having said anything
        with contextlib.closing(Console(outside, inside.place)) as anew:
            assert anew.do("answers") == ["b''"]
            anew.do("closed_server.setblocking(False)")
            anew.connect(7600)
            await until(lambda: accepted(anew), "the server has listened all the time")


def accepted(inside: Console) -> bool:
    try:
        inside.do("closed_server.accept()")
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(("source", "target"), ACROSS)
async def test_on_the_default_bridge_auto_closes(outside: Cluster, source: str, target: str) -> None:
    """The address does not move along: said so in the report; with `keep` it is refused."""
    name, host = "bridged", outside[source]
    try:
        host.ensure_image("py")
        publish = ["--publish", "7700:7100", "--publish", "7701:7800"]
        host.docker("run", "-d", "--name", name, *publish, "py", "python3", "-c", PROGRAM.read_text())
        with by_host(outside, source) as inside:
            inside.do("server = socket.create_server(('', 7800))")
            with inside.call(7701) as caller:
                inside.do("known = server.accept()[0]")
                kept = await outside.migrate(name, source, target, tcp="keep")
                assert kept.error is not None
                assert kept.error.code is ErrorCode.NOT_MIGRATABLE
                assert inside.do("known.fileno() > 0") is True
                reply = await outside.migrate(name, source, target)
                assert reply.kind is ReplyKind.FINISHED, reply.error
                assert reply.report is not None
                assert reply.report.tcp == "close"
                with pytest.raises(ConnectionResetError):
                    caller.recv(100)
        with by_host(outside, target) as inside:
            assert inside.do("known.recv(100)") == "b''"
            with inside.call(7701) as caller:
                caller.sendall(b"a new one")
                assert inside.do("server.accept()[0].recv(100).decode()") == "a new one"
        await clean(outside, source, target)
    finally:
        remove(outside, name)


async def test_what_is_bound_to_an_address_that_stays_is_not_moved(outside: Cluster) -> None:
    name, host = "bound", outside["a28"]
    try:
        host.ensure_image("py")
        host.docker("run", "-d", "--name", name, "--publish", "7700:7100", "py", "python3", "-c", PROGRAM.read_text())
        address = host.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", name)
        with by_host(outside, "a28") as inside:
            inside.do(f"server = socket.create_server(({address!r}, 7800))")
            reply = await outside.migrate(name, "a28", "b26")
            assert reply.error is not None
            assert reply.error.code is ErrorCode.NOT_MIGRATABLE
            assert f"bound to {address}" in reply.error.message
            assert inside.do("server.close()") is None
        assert (await outside.migrate(name, "a28", "b26")).kind is ReplyKind.FINISHED
    finally:
        remove(outside, name)


# Where the addresses are


async def test_what_docker_has_not_given_to_its_network_is_not_lost_without_a_word(outside: Cluster) -> None:
    with console(outside, "a28", "added", Place(158)) as inside:
        pid = outside["a28"].docker("inspect", "-f", "{{.State.Pid}}", "added")
        within = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        address = ["10.77.0.159/24", "dev", "eth0"]
        outside["a28"].run([*within, "ip", "address", "add", *address])
        shut = "add chain inet own in { type filter hook input priority 0; policy drop; }"
        outside["a28"].run([*within, "nft", f"add table inet own; {shut}"])
        reply = await outside.migrate("added", "a28", "b26")
        assert reply.error is not None
        assert reply.error.consequence is Consequence.UNTOUCHED
        found = " ".join([reply.error.message, *(reason.message for reason in reply.error.reasons)])
        assert "the address 10.77.0.159 on eth0" in found
        assert "firewall rules (table inet own)" in found
        outside["a28"].run([*within, "ip", "address", "del", *address])
        outside["a28"].run([*within, "nft", "delete table inet own"])
        await moved(outside, "added", "a28", "b26")
        assert inside.do("6 * 7") == 42


@pytest.mark.parametrize(("source", "target"), ACROSS)
async def test_neighbours_learn_at_once(outside: Cluster, source: str, target: str) -> None:
    """Gratuitous ARP and an unsolicited advertisement are seen, and new connections work, IPv4 and IPv6."""
    place = Place(156)
    with console(outside, source, "announced", place) as inside, contextlib.closing(Frames(outside)) as frames:
        for v6 in (False, True):
            inside.connect(PORT, v6=v6)
        frames.announced()
        await moved(outside, "announced", source, target)
        began = time.monotonic()
        for v6 in (False, True):
            inside.connect(PORT, v6=v6)
        assert time.monotonic() - began < AT_ONCE
        assert frames.announced() >= {(place.v4, place.mac), (place.v6, place.mac)}


async def test_what_dockerd_takes_down_again_is_taken_back(outside: Cluster) -> None:
    """Docker 28 can't attach the network to the held copy: an answer within moments, and the source is found again."""
    place = Place(157)
    with console(outside, "a26", "undone", place) as inside, contextlib.closing(Frames(outside)) as frames:
        frames.announced()
        script = '[ -f "$2" ] && sed -i /nd-neighbor/d "$2"; exec /usr/sbin/nft.real "$@"'
        with replaced(outside["b28"], "/usr/sbin/nft", script):
            reply = await outside.migrate("undone", "a26", "b28")
        assert reply.error is not None
        assert reply.error.consequence is Consequence.TAKEN_BACK
        assert "failed to set up container networking" in reply.error.message
        began = time.monotonic()
        inside.connect(PORT)
        assert time.monotonic() - began < AT_ONCE
        assert frames.announced() >= {(place.v4, place.mac), (place.v6, place.mac)}, "from the source, once more"
        assert inside.do("6 * 7") == 42
        assert restorers(outside["b28"]) == ""
        await until(lambda: orphans(outside) == 0, "no socket of the copy lives on")
        await clean(outside, "a26", "b28")
        await moved(outside, "undone", "a26", "b28")


def restorers(host: Host) -> str:
    """What a restore may leave: processes of CRIU, mounts of theirs, tasks in containerd that Docker does not know."""
    script = (
        "ps -eo args | grep '^criu\\|[h]old.sh'; grep -o '/[^ ]*criu[^ ]*' /proc/mounts; "
        'ctr --namespace moby tasks list --quiet | grep -v "$(docker ps --quiet --no-trunc || echo nothing)"'
    )
    return host.run(["sh", "-c", script], check=False).stdout


def orphans(cluster: Cluster) -> int:
    """TCP sockets on this machine that no process holds."""
    words = Path("/proc/net/sockstat").read_text().split()
    return int(words[words.index("orphan") + 1])
