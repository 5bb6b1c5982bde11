"""Networks, addresses and published ports: made again on the target, announced there, and never taken from others."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.macvlan import Place
from lab.shell import PIPE, Process, end
from protocol.errors import ErrorCode
from tests.e2e.fidelity import idle, inspect, move, notes, remove, stays
from tests.e2e.support import clean, until

NAME = "wanderer"
PLACE = Place(140)
V4, V6, MAC = PLACE.v4, PLACE.v6, PLACE.mac
SERVER = """
import http.server, os, socket, threading, time
class Own(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % os.getpid() + b" up since START")
    def log_message(self, *args): pass
class Both(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
http.server.ThreadingHTTPServer(("127.0.0.1", 81), Own)
Both(("::", 80), Own).serve_forever()
"""


def serve(host: Host, name: str, *options: str) -> None:
    """A web server that says when it was started."""
    host.ensure_image("py")
    program = "import time; since = repr(time.time())" + SERVER.replace('b" up since START"', 'f" {since}".encode()')
    host.docker("run", "-d", "--name", name, *options, "py", "python3", "-c", program)


def fetch(cluster: Cluster, url: str, *, check: bool = False) -> str:
    """From the lab's client."""
    return cluster.lab.client_run(["curl", "--silent", "--max-time", "3", url], check=check).stdout


def networks_of(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = inspect(host, name)["NetworkSettings"]["Networks"]
    return found


def about(host: Host, network: str) -> dict[str, Any]:
    """A network, but for what is its own on each host."""
    found: dict[str, Any] = json.loads(host.docker("network", "inspect", network))[0]
    own = ("Id", "Created", "Containers", "EnableIPv4", "Status")
    return {key: value for key, value in found.items() if key not in own}


def forget(cluster: Cluster, *networks: str) -> None:
    remove(cluster, NAME, "other")
    for host in cluster.lab.hosts.values():
        host.docker("network", "rm", *networks, check=False)


async def until_answers(cluster: Cluster, url: str) -> str:
    await until(lambda: fetch(cluster, url) != "", f"{url} answers")
    return fetch(cluster, url)


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("b28", "a26")], ids=["26-28", "28-26"])
async def test_several_networks_on_one_container(pair: Cluster, tmp_path: Path, source: str, target: str) -> None:
    """A bridge and a macvlan: missing networks are made the same, addresses stay, and are announced at once."""
    here, there = pair[source], pair[target]
    made = ("inner", "outer")
    try:
        inner = ("--subnet=10.94.0.0/24", "--ipv6", "--subnet=fd94::/64", "--label=x=y")
        here.docker("network", "create", *inner, "inner")
        lan = ("--subnet=10.77.0.0/24", "--gateway=10.77.0.1", "--ipv6", "--subnet=fd77::/64", "--opt=parent=eth0")
        here.docker("network", "create", "--driver=macvlan", *lan, "outer")
        outer = f"--network=name=outer,ip={V4},ip6={V6},mac-address={MAC}"
        serve(here, NAME, "--network=name=inner,alias=in", outer)
        before = networks_of(here, NAME)
        found = here.docker("exec", NAME, "python3", "-c", RESOLVE)
        said = await until_answers(pair, f"http://{V4}/")
        assert await until_answers(pair, f"http://[{V6}]/") == said
        with heard(pair, tmp_path / "heard") as told:
            reply = await move(pair, NAME, source, target)
            await until(lambda: {"arp", "advertisement"} <= told(), "both families are announced")
        after = networks_of(there, NAME)
        keys = ("IPAddress", "GlobalIPv6Address", "MacAddress", "IPPrefixLen", "GlobalIPv6PrefixLen")
        assert {name: [end_[key] for key in keys] for name, end_ in before.items()} == {
            name: [end_[key] for key in keys] for name, end_ in after.items()
        }
        for network in made:
            assert about(there, network) == about(here, network)
        assert fetch(pair, f"http://{V4}/") == said, "the same process answers at once"
        assert fetch(pair, f"http://[{V6}]/") == said
        assert there.docker("exec", NAME, "python3", "-c", RESOLVE) == found
        assert reply.report is not None
        assert reply.report.tcp == "close", "the address on the bridge does not lead here any more"
        await clean(pair, source, target)
    finally:
        forget(pair, *made)


RESOLVE = "import socket; print([socket.gethostbyname(name) for name in ('wanderer', 'in')])"
LISTEN = """
import socket, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
while True:
    frame = sock.recv(2048)
    if frame[6:12] == bytes.fromhex("MAC") and frame[12:14] == b"\\x08\\x06" and frame[28:32] == frame[38:42]:
        print("arp", flush=True)
    if frame[6:12] == bytes.fromhex("MAC") and frame[12:14] == b"\\x86\\xdd" and frame[54] == 136 and frame[21] == 255:
        print("advertisement", flush=True)
"""


@contextmanager
def heard(cluster: Cluster, file: Path) -> Iterator[Callable[[], set[str]]]:
    """What a neighbour hears of the MAC address."""
    with file.open("w") as out:
        listening = cluster.lab.client_popen(["python3", "-c", LISTEN.replace("MAC", MAC.replace(":", ""))], stdout=out)
        try:
            yield lambda: set(file.read_text().split())
        finally:
            end(listening)


async def refused(pair: Cluster, code: ErrorCode, said: str, source: str = "a26", target: str = "b28") -> None:
    await stays(pair, NAME, source, target, code, said)


async def test_an_address_of_the_users_choice_must_be_had(pair: Cluster) -> None:
    """Where another container has it, or the network is another one: refused. One of Docker's choice may change."""
    here, there = pair["a26"], pair["b28"]
    try:
        here.docker("network", "create", "--subnet=10.95.0.0/24", "inner")
        there.docker("network", "create", "--subnet=10.95.0.0/24", "inner")
        idle(there, "other", "--network=inner", "--ip=10.95.0.7")
        idle(here, NAME, "--network=inner", "--ip=10.95.0.7")
        await refused(pair, ErrorCode.ADDRESS_TAKEN, "10.95.0.7 is taken on inner")
        remove(pair, NAME, "other")
        there.docker("network", "rm", "inner")
        there.docker("network", "create", "--subnet=10.96.0.0/24", "inner")
        idle(here, NAME, "--network=inner", "--ip=10.95.0.7")
        await refused(pair, ErrorCode.INCOMPATIBLE, "its address 10.95.0.7 is in none of the subnets of the network")
        remove(pair, NAME)
        idle(here, NAME, "--network=inner")
        reply = await move(pair, NAME, "a26", "b28")
        assert any("it gets another address than 10.95.0.2 on inner" in note for note in notes(reply)), notes(reply)
        assert networks_of(there, NAME)["inner"]["IPAddress"] == "10.96.0.2"
        # on its way back the address is still nobody's wish
        reply = await move(pair, NAME, "b28", "a26")
        assert networks_of(here, NAME)["inner"]["IPAddress"] == "10.95.0.2"
    finally:
        forget(pair, "inner")


async def test_a_missing_network_whose_subnet_is_used_by_another(pair: Cluster) -> None:
    here, there = pair["a26"], pair["b28"]
    try:
        here.docker("network", "create", "--subnet=10.97.0.0/24", "inner")
        there.docker("network", "create", "--subnet=10.97.0.0/16", "rival")
        idle(here, NAME, "--network=inner", "--ip=10.97.0.9")
        await refused(pair, ErrorCode.INCOMPATIBLE, "10.97.0.0/24 overlaps with 10.97.0.0/16 of rival")
        remove(pair, NAME)
        idle(here, NAME, "--network=inner")
        reply = await move(pair, NAME, "a26", "b28")
        assert any("the network inner is made with another subnet" in note for note in notes(reply)), notes(reply)
        assert networks_of(there, NAME)["inner"]["IPAddress"]
        remove(pair, NAME)
        there.docker("network", "rm", "inner", "rival")
        there.docker("network", "create", "--driver=macvlan", "--opt=parent=eth0", "--subnet=10.97.0.0/24", "inner")
        idle(here, NAME, "--network=inner")
        await refused(pair, ErrorCode.INCOMPATIBLE, "its network inner is a macvlan, the source's a bridge")
    finally:
        forget(pair, "inner", "rival")


@asynccontextmanager
async def taken(host: Host, port: int) -> AsyncIterator[None]:
    """A program on the host listens there, on 127.0.0.1."""
    listening = host.popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)])
    try:
        await until(lambda: f"127.0.0.1:{port}" in host.run(["ss", "-ltn"]).stdout, "the port is taken")
        yield
    finally:
        end(listening)


async def test_published_ports_lead_to_it_on_the_target(pair: Cluster) -> None:
    """From outside, to the address of the host where it is; a port that is taken there is refused."""
    here, there = pair["a26"], pair["b28"]
    was, is_now = (f"http://{host.node.address.v4}:8090/" for host in (here, there))
    try:
        serve(here, NAME, "--publish=8090:80", "--publish=127.0.0.1:8091:80")
        said = await until_answers(pair, was)
        async with taken(there, 8091):
            await refused(pair, ErrorCode.PORT_TAKEN, "port 8091/tcp, which it publishes, is taken")
        await move(pair, NAME, "a26", "b28")
        assert await until_answers(pair, is_now) == said, "the same process"
        assert there.run(["curl", "--silent", "http://127.0.0.1:8091/"]).stdout == said
        assert fetch(pair, was) == ""
        await move(pair, NAME, "b28", "a26")
        assert await until_answers(pair, was) == said
        remove(pair, NAME)
        idle(here, NAME, f"--publish={here.node.address.v4}:8090:80")
        await refused(pair, ErrorCode.INCOMPATIBLE, "10.77.0.11, which is no address of the target")
    finally:
        forget(pair)


async def test_policies_of_the_target(pair: Cluster) -> None:
    """`network_policy = "require"` makes no network; `port_policy = "remap"` takes a port of Docker's choice."""
    here, there = pair["a26"], pair["b28"]
    policies = {"network_policy": "require", "port_policy": "remap"}
    there.stop_agent()
    there.start_agent(config=policies)
    try:
        await pair.until_ready()
        here.docker("network", "create", "inner")
        serve(here, NAME, "--network=inner", "--publish=8090:80")
        said = await until_answers(pair, f"http://{here.node.address.v4}:8090/")
        idle(there, "other", "--publish=8090:80")
        await refused(pair, ErrorCode.NETWORK_MISSING, "there is no network inner")
        there.docker("network", "create", "inner")
        reply = await move(pair, NAME, "a26", "b28")
        assert any("port 8090/tcp is taken there" in note for note in notes(reply)), notes(reply)
        # by the subnet that Docker has chosen for it there
        assert any("another address" in note and "on inner" in note for note in notes(reply)), notes(reply)
        port = there.docker("port", NAME, "80/tcp").splitlines()[0].rpartition(":")[2]
        assert port != "8090"
        assert await until_answers(pair, f"http://{there.node.address.v4}:{port}/") == said
    finally:
        there.stop_agent()
        there.start_agent()
        await pair.until_ready()
        forget(pair, "inner")


LISTENER = """
import socket
sock = socket.create_server((socket.gethostbyname(socket.gethostname()), 99))
while True: sock.accept()
"""


async def test_a_program_that_listens_on_its_own_address(pair: Cluster) -> None:
    """Also where that address becomes another: it listens on, though nobody finds it there."""
    here, there = pair["a26"], pair["b28"]
    try:
        here.ensure_image("py")
        here.docker("network", "create", "inner")
        here.docker("run", "-d", "--name", NAME, "--network=inner", "py", "python3", "-c", LISTENER)
        await until(lambda: ":99 " in here.docker("exec", NAME, "netstat", "-ltn"), "it listens")
        for source, target in ((here, there), (there, here)):
            idle(target, "other", "--network=bridge")  # which takes the first address
            await move(pair, NAME, source.name, target.name)
            assert ":99 " in target.docker("exec", NAME, "netstat", "-ltn")
            remove(pair, "other")
    finally:
        forget(pair, "inner")


# The host's own network

ON_THE_HOST = """
import os, socket, time
since = time.time()
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("", 7999))
server = socket.create_server(("", 7998))
local = socket.create_server(("127.0.0.1", 7997))
calling = socket.create_connection(local.getsockname())
while True:
    connection, _ = server.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d %f" % (os.getpid(), since))
    connection.close()
"""
# Ends when its connection does.
OF_ANOTHER = """
import select, socket
server = socket.create_server(("", 0))
calling = socket.create_connection(server.getsockname())
called = server.accept()
print(flush=True)
select.select([calling], [], [])
"""


@contextmanager
def another_s_connection(host: Host) -> Iterator[Process]:
    with host.popen(["python3", "-c", OF_ANOTHER], stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            end(process)


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("b28", "a26")], ids=["26-28", "28-26"])
async def test_on_the_host_s_network(pair: Cluster, source: str, target: str) -> None:
    """Its ports are then those of the target, if nobody has them; nobody else on either host's network notices."""
    here, there = pair[source], pair[target]
    was, is_now = (f"http://{host.node.address.v4}:7998/" for host in (here, there))
    try:
        here.ensure_image("py")
        here.docker("run", "-d", "--name", NAME, "--network=host", "py", "python3", "-c", ON_THE_HOST)
        said = await until_answers(pair, was)
        async with taken(there, 7997):
            await refused(pair, ErrorCode.PORT_TAKEN, "port 7997/tcp, which it holds", source, target)
        with another_s_connection(here) as one, another_s_connection(there) as other:
            reply = await move(pair, NAME, source, target)
            assert (one.poll(), other.poll()) == (None, None), "the hosts' other connections are as before"
        assert any("it is on the host's network" in note for note in notes(reply)), notes(reply)
        assert await until_answers(pair, is_now) == said, "the same process"
        assert ":7999 " in there.run(["ss", "-lun"]).stdout
        assert fetch(pair, was) == ""
        await clean(pair, source, target)
    finally:
        forget(pair)
