"""Connections that no process holds, asked of the kernel in a network namespace of the test's own."""

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.network import sockets
from agent.network.namespace import is_ours, path_of, within
from agent.network.sockets import Bound, Ownerless

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")

ADDRESSES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
Make = Callable[[Callable[[], socket.socket]], socket.socket]


@pytest.fixture
def pid() -> Iterator[int]:
    """A process with a network namespace of its own."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up; echo up; exec sleep 60"], stdout=-1
    ) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        yield it.pid
        it.kill()


@pytest.fixture
def make(pid: int) -> Iterator[Make]:
    """Makes sockets there, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda work: stack.enter_context(within(pid, work))


def server(make: Make, family: socket.AddressFamily) -> socket.socket:
    return make(lambda: socket.create_server((ADDRESSES[family], 0), family=family))


def test_nothing_is_ownerless_where_there_is_nothing(pid: int) -> None:
    assert sockets.ownerless(pid) == Ownerless()
    assert sockets.buffered(pid) == 0
    assert sockets.bound(pid) == Bound(frozenset(), frozenset())


@pytest.mark.parametrize("family", ADDRESSES)
def test_connections_wait_until_they_are_accepted(pid: int, make: Make, family: socket.AddressFamily) -> None:
    there = server(make, family)
    for _ in range(3):
        make(lambda: socket.create_connection(there.getsockname()[:2]))
    assert sockets.ownerless(pid) == Ownerless(waiting=3)
    accepted = make(lambda: there.accept()[0])
    assert sockets.ownerless(pid) == Ownerless(waiting=2)
    accepted.sendall(b"x")
    assert sockets.ownerless(pid) == Ownerless(waiting=2), "one that is held is nobody else's business"


def test_unix_connections_wait_too(pid: int, make: Make) -> None:
    there = make(lambda: socket.socket(socket.AF_UNIX))
    there.bind("\0there")
    there.listen()
    make(lambda: socket.socket(socket.AF_UNIX)).connect("\0there")
    assert sockets.ownerless(pid) == Ownerless(waiting_unix=1)


def test_what_is_closed_with_something_left_to_say_is_closing_and_then_stuck(pid: int, make: Make) -> None:
    there = server(make, socket.AF_INET)
    here = make(lambda: socket.create_connection(there.getsockname()))
    make(lambda: there.accept()[0])  # which does not read
    here.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            here.send(bytes(65536))
    assert sockets.buffered(pid) > 65536
    here.close()
    assert sockets.ownerless(pid) == Ownerless(closing=1)
    end = time.monotonic() + 30
    while sockets.ownerless(pid) != Ownerless(stuck=1):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_destroyed_connections_are_gone_on_both_sides(pid: int, make: Make) -> None:
    there = server(make, socket.AF_INET)
    here = make(lambda: socket.create_connection(there.getsockname()))
    other = make(lambda: there.accept()[0])
    sockets.destroy(path_of(pid))
    for each in (here, other):
        with pytest.raises(ConnectionError):
            each.recv(1)
    make(lambda: socket.create_connection(there.getsockname(), timeout=5))  # what listens goes on listening


def test_addresses_that_have_to_be_there_are_named(pid: int, make: Make) -> None:
    subprocess.run(["nsenter", f"--net={path_of(pid)}", "ip", "address", "add", "10.1.2.3/24", "dev", "lo"], check=True)
    at_once = ["fd00::3/64", "dev", "lo", "nodad"]
    subprocess.run(["nsenter", f"--net={path_of(pid)}", "ip", "address", "add", *at_once], check=True)
    server(make, socket.AF_INET)
    make(lambda: socket.create_server(("", 7000)))
    assert sockets.bound(pid) == Bound(frozenset(), frozenset())
    listening = make(lambda: socket.create_server(("10.1.2.3", 7001)))
    make(lambda: socket.create_connection(listening.getsockname()))
    assert sockets.bound(pid).addresses == {"10.1.2.3"}
    make(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)).bind(("fd00::3", 7002))
    assert sockets.bound(pid) == Bound(frozenset({"10.1.2.3", "fd00::3"}), frozenset())


def test_interfaces_that_have_to_be_there_are_named(pid: int, make: Make) -> None:
    for name in ("one", "two", "three"):
        argv = ["ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}-peer"]
        subprocess.run(["nsenter", f"--net={path_of(pid)}", *argv], check=True)
    make(lambda: socket.create_server(("", 0))).getsockname()
    assert sockets.bound(pid).interfaces == set()
    make(lambda: socket.create_server(("", 0))).setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"one")
    bound = make(lambda: socket.socket(type=socket.SOCK_DGRAM))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"two")
    bound.bind(("", 7003))
    make(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)).bind(("three", 3))
    assert sockets.bound(pid).interfaces == {"one", "two", "three"}


def test_on_the_host_s_network_its_own_sockets_are_told_from_others() -> None:
    with socket.create_server(("", 0)) as other, socket.create_server(("127.0.0.1", 0)) as own:
        inodes = {os.fstat(own.fileno()).st_ino}
        [place] = sockets.on_the_host(inodes)
        assert (place.protocol, str(place.address), place.port) == ("tcp", *own.getsockname())
        assert other.fileno() not in inodes
        assert sockets.bound_to([place]) == Bound(frozenset(), frozenset())
        elsewhere = replace(place, address=IPv4Address("10.0.0.7"))
        assert sockets.bound_to([place, elsewhere]).addresses == {"10.0.0.7"}


def test_nothing_on_the_host_s_network_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_ours(os.getpid())
    monkeypatch.setattr(sockets, "_destroy", lambda: pytest.fail("the host's connections would end"))
    sockets.destroy(path_of(os.getpid()))
    assert sockets.buffered(os.getpid()) == 0


@pytest.mark.parametrize("family", ADDRESSES)
def test_what_criu_does_not_look_at_is_named(pid: int, make: Make, family: socket.AddressFamily) -> None:
    there = server(make, family)
    make(lambda: socket.create_connection(there.getsockname()[:2]))
    assert sockets.extraordinary(pid) == frozenset()
    peer = there.getsockname()
    address = struct.pack("=HH", family, 0) + bytes(4 if family == socket.AF_INET6 else 0)
    address += socket.inet_pton(family, peer[0])
    key = struct.pack("=128sBBHi80s", address, 0, 0, 6, 0, b"secret")
    there.setsockopt(socket.IPPROTO_TCP, 14, key)  # TCP_MD5SIG
    assert sockets.extraordinary(pid) == {"MD5 signatures (TCP_MD5SIG)"}
