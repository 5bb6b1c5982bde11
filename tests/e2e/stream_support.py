"""Sockets of a test at the lab's client, and a container that does with its own what the test says."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from agent.network.namespace import within_path
from lab.cluster import Cluster
from lab.host import Host
from lab.lab import CLIENT_ADDRESS
from lab.macvlan import Place, ensure_network
from tests.e2e.fidelity import remove
from tests.e2e.stream_console import PORT

PROGRAM = Path(__file__).with_name("stream_console.py")
HOSTS = ("a26", "b26", "a28", "b28")
T = TypeVar("T")


def at_client(cluster: Cluster, work: Callable[[], T]) -> T:
    """Done at the lab's client: a socket made there stays there."""
    return within_path(str(cluster.lab.client.path), work)


def _connected(cluster: Cluster, place: tuple[str, int], patience: float, again: type[OSError]) -> socket.socket:
    """A connection from the lab's client, tried again after such an error."""
    end = time.monotonic() + patience
    while True:
        try:
            return at_client(cluster, lambda: socket.create_connection(place, timeout=20))
        except again:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Console:
    """A container of `stream_console.py`, by a connection from the lab's client."""

    def __init__(self, cluster: Cluster, place: Place) -> None:
        self.cluster = cluster
        self.place = place
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context(self.connect(PORT, patience=30).makefile("rw"))

    def close(self) -> None:
        self._open.close()

    def at_client(self, make: Callable[[], socket.socket]) -> socket.socket:
        """A socket at the client, closed with this."""
        return self._open.enter_context(at_client(self.cluster, make))

    def address(self, v6: bool) -> str:
        return self.place.v6 if v6 else self.place.v4

    def client_address(self, v6: bool) -> str:
        return CLIENT_ADDRESS.v6 if v6 else CLIENT_ADDRESS.v4

    def connect(self, port: int, *, v6: bool = False, patience: float = 10.0) -> socket.socket:
        """A connection from the client, tried again for as long as nobody listens."""
        place = self.address(v6), port
        return self._open.enter_context(_connected(self.cluster, place, patience, ConnectionRefusedError))

    def do(self, code: str) -> Any:
        """Run Python in the container; the value of an expression."""
        return _done(self._file, code)

    def pair(self, name: str, port: int, *, v6: bool = False) -> socket.socket:
        """A connection that the container has accepted, as `name` in it; its other end."""
        family = "socket.AF_INET6" if v6 else "socket.AF_INET"
        self.do(f"{name}_server = socket.create_server(({self.address(v6)!r}, {port}), family={family})")
        other = self.connect(port, v6=v6)
        self.do(f"{name} = {name}_server.accept()[0]")
        self.do(f"{name}.settimeout(20)")
        return other


class ByHost:
    """The same by a port that a host publishes."""

    def __init__(self, cluster: Cluster, host: str) -> None:
        self._cluster = cluster
        self._address = cluster[host].node.address.v4
        self._connection = self.call(7700)
        self._file = self._connection.makefile("rw")

    def close(self) -> None:
        self._file.close()
        self._connection.close()

    def call(self, port: int, patience: float = 20.0) -> socket.socket:
        return _connected(self._cluster, (self._address, port), patience, OSError)

    def do(self, code: str) -> Any:
        return _done(self._file, code)


def by_host(cluster: Cluster, host: str) -> "contextlib.closing[ByHost]":
    return contextlib.closing(ByHost(cluster, host))


def _done(file: IO[str], code: str) -> Any:
    """Run Python in the container; the value of an expression."""
    print(json.dumps(code), file=file, flush=True)
    answer = json.loads(file.readline())
    assert "error" not in answer, f"{code}: {answer.get('trace')}"
    return answer.get("value")


@contextmanager
def console(cluster: Cluster, host: str, name: str, place: Place, *options: str) -> Iterator[Console]:
    """A running one; removed wherever it is by then."""
    try:
        run(cluster[host], name, place, *options)
        with contextlib.closing(Console(cluster, place)) as found:
            yield found
    finally:
        remove(cluster, name)


def run(host: Host, name: str, place: Place, *options: str) -> None:
    host.ensure_image("py")
    ensure_network(host)
    host.docker("run", "-d", "--name", name, *place.options, *options, "py", "python3", "-c", PROGRAM.read_text())


def network_of(host: Host, name: str) -> dict[str, object]:
    """What a container's network looks like from within: addresses, routes, rules; without what differs by chance."""
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", name)

    def ask(*argv: str) -> Any:
        return json.loads(host.run(["nsenter", f"--net=/proc/{pid}/ns/net", *argv]).stdout or "[]")

    links = ask("ip", "-j", "address")
    tables = [entry["table"] for entry in ask("nft", "-j", "list", "tables")["nftables"] if "table" in entry]
    return {
        "addresses": {
            link["ifname"]: sorted((each["local"], each["prefixlen"]) for each in link["addr_info"]) for link in links
        },
        "macs": {link["ifname"]: link["address"] for link in links},
        "routes": sorted(_route(each) for each in (*ask("ip", "-j", "route"), *ask("ip", "-6", "-j", "route"))),
        "tables": sorted(f"{table['family']} {table['name']}" for table in tables if table["name"] == "transship"),
    }


def _route(entry: dict[str, Any]) -> str:
    return " ".join(str(entry.get(key, "-")) for key in ("dst", "gateway", "dev", "metric"))


class Frames:
    """Everything on the lab's client's cable that says where an address is."""

    def __init__(self, cluster: Cluster) -> None:
        def listen() -> socket.socket:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            link.bind(("eth0", 0))
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            link.setblocking(False)
            return link

        self._link = at_client(cluster, listen)

    def close(self) -> None:
        self._link.close()

    def announced(self) -> set[tuple[str, str]]:
        """Addresses and MACs of the gratuitous ARPs and unsolicited advertisements since the last call."""
        found: set[tuple[str, str]] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                found |= _announced(self._link.recv(2048))
        return found


def _announced(frame: bytes) -> set[tuple[str, str]]:
    destination, (kind,) = frame[:6], struct.unpack_from("!H", frame, 12)
    if kind == 0x0806 and destination == b"\xff" * 6 and frame[28:32] == frame[38:42]:
        return {(socket.inet_ntop(socket.AF_INET, frame[28:32]), frame[22:28].hex(":"))}
    # IPv6 to all nodes, ICMPv6, neighbour advertisement, with the target's MAC as its option
    if kind == 0x86DD and frame[20] == 58 and frame[54:55] == b"\x88" and destination == bytes.fromhex("333300000001"):
        return {(socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[80:86].hex(":"))}
    return set()
