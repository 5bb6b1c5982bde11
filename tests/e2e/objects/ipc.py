"""Sockets within the container, and System V's objects."""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator

from objects.held import Child, Differs, call, held, libc, readable, same, true

IPC_CREAT, IPC_STAT, SETVAL, GETVAL, IPC_NOWAIT = 0o1000, 2, 16, 12, 0o4000


@held
def unix_stream_pair() -> Iterator[None]:
    left, right = socket.socketpair()
    while True:
        left.send(b"to the right")
        right.send(b"to the left")
        yield
        same(right.recv(100), b"to the right")
        same(left.recv(100), b"to the left")


@held
def unix_half_closed_pair() -> Iterator[None]:
    left, right = socket.socketpair()
    left.send(b"the last")
    left.shutdown(socket.SHUT_WR)
    first = True
    while True:
        yield
        same(right.recv(100), b"the last" if first else b"")
        same(right.recv(100), b"", "at its end")
        right.send(b"still open")
        same(left.recv(100), b"still open")
        first = False


@held
def unix_sequenced_packets() -> Iterator[None]:
    left, right = socket.socketpair(type=socket.SOCK_SEQPACKET)
    while True:
        left.send(b"one")
        left.send(b"two")
        yield
        same([right.recv(100), right.recv(100)], [b"one", b"two"])


def _unix_server(address: str) -> Iterator[None]:
    """Bound and listening, with an accepted connection, and one that waits to be accepted.

    Nothing was sent over that one yet: CRIU can't carry what was, and says so.
    """
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(5)
    accepted_client = socket.socket(socket.AF_UNIX)
    accepted_client.connect(address)
    accepted, _ = server.accept()
    server.settimeout(5)
    while True:
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(address)
        yield
        late, _ = server.accept()
        waiting.send(b"it has waited")
        same(late.recv(100), b"it has waited")
        late.send(b"answered")
        same(waiting.recv(100), b"answered")
        accepted_client.send(b"ping")
        same(accepted.recv(100), b"ping")
        fresh = socket.socket(socket.AF_UNIX)
        fresh.connect(address)
        server.accept()[0].send(b"hello")
        same(fresh.recv(100), b"hello")


@held
def unix_listening_by_path() -> Iterator[None]:
    return _unix_server("/srv/listening.socket")


@held
def unix_listening_abstract() -> Iterator[None]:
    return _unix_server("\0listening")


@held
def unix_datagrams() -> Iterator[None]:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("/srv/datagram.socket")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect("/srv/datagram.socket")
    while True:
        client.send(b"first")
        client.send(b"second")
        yield
        same([server.recv(100), server.recv(100)], [b"first", b"second"])
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stranger.sendto(b"by its name", "/srv/datagram.socket")
        same(server.recv(100), b"by its name")


@held
def tcp_over_loopback() -> Iterator[None]:
    """A connection within the container, with data in both directions, IPv4 and IPv6."""
    pairs = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            server = socket.create_server((address, 0), family=family)
        except OSError:
            continue  # no IPv6 in this container
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        pairs.append((server, client, accepted))
    while True:
        for _, client, accepted in pairs:
            client.send(b"to the server" * 5000)
            accepted.send(b"to the client")
        yield
        for server, client, accepted in pairs:
            same(accepted.recv(65000, socket.MSG_WAITALL), b"to the server" * 5000)
            same(client.recv(100), b"to the client")
            with socket.create_connection(server.getsockname()[:2], timeout=5):
                server.accept()[0].close()


@held
def tcp_options() -> Iterator[None]:
    server = socket.create_server(("127.0.0.1", 0), backlog=77)
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    options = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 77,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 7,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 5,
        (socket.IPPROTO_IP, socket.IP_TOS): 0x10,
        (socket.SOL_SOCKET, socket.SO_REUSEADDR): 1,
        (socket.SOL_SOCKET, socket.SO_PRIORITY): 4,
        (socket.SOL_SOCKET, socket.SO_OOBINLINE): 1,
    }
    for (level, option), value in options.items():
        client.setsockopt(level, option, value)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 500000))
    buffers = [client.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    while True:
        yield
        for (level, option), value in options.items():
            same(client.getsockopt(level, option), value, f"option {level}/{option}")
        same(struct.unpack("ll", client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)), (3, 500000), "timeout")
        now = [client.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
        true(all(a >= b for a, b in zip(now, buffers, strict=True)), f"buffers {now} instead of {buffers}")
        accepted.send(b"x")
        same(client.recv(1), b"x")


@held
def udp_bound() -> Iterator[None]:
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(5)
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect(server.getsockname())
    while True:
        yield
        client.send(b"ping")
        message, sender = server.recvfrom(100)
        same((message, sender), (b"ping", client.getsockname()))


@held
def packet_and_raw_and_netlink_sockets() -> Iterator[None]:
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x88B5))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    netlink.bind((0, 1))  # RTMGRP_LINK
    while True:
        yield
        same(packet.getsockname()[1], 0x88B5)
        raw.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("127.0.0.1", 0))  # an echo request
        same(raw.recv(100)[20], 8, "ICMP's type")
        same(netlink.getsockname()[1], 1, "netlink groups")
        drain(netlink)  # of what the move itself has done to the interfaces; CRIU dumps none that has something to read
        netlink.send(struct.pack("IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, 1, 0, 0))  # RTM_GETLINK of lo
        true(readable(netlink.fileno()), "it does not answer")
        same(struct.unpack_from("IHH", netlink.recv(65536))[1], 16, "the kind of the answer")  # RTM_NEWLINK
        drain(raw)


def drain(endpoint: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            endpoint.recv(65536, socket.MSG_DONTWAIT)


@held
def system_v_shared_memory() -> Iterator[None]:
    libc.shmat.restype = ctypes.c_void_p
    number = call("shmget", 0x7001, 1 << 20, IPC_CREAT | 0o600)
    place = libc.shmat(number, None, 0)
    ctypes.memmove(place, b"shared by all", 13)
    child = Child(lambda line: ctypes.memmove(place + 100, line.encode(), len(line)) and "done")
    turn = 0
    while True:
        yield
        turn += 1
        same(ctypes.string_at(place, 13), b"shared by all")
        child.ask(f"from the child {turn}")
        same(ctypes.string_at(place + 100, 16), f"from the child {turn}".encode())
        same(call("shmget", 0x7001, 0, 0), number, "its number")


@held
def system_v_semaphores() -> Iterator[None]:
    number = call("semget", 0x7002, 3, IPC_CREAT | 0o600)
    for index, value in enumerate((5, 0, 9)):
        call("semctl", number, index, SETVAL, value)
    while True:
        yield
        same(call("semget", 0x7002, 0, 0), number, "its number")
        same([call("semctl", number, index, GETVAL) for index in range(3)], [5, 0, 9])


@held
def system_v_messages() -> Iterator[None]:
    number = call("msgget", 0x7003, IPC_CREAT | 0o600)
    message = ctypes.create_string_buffer(struct.pack("l", 3) + b"in the queue")
    while True:
        call("msgsnd", number, message, 12, 0)
        yield
        same(call("msgget", 0x7003, 0), number, "its number")
        found = ctypes.create_string_buffer(100)
        same(call("msgrcv", number, found, 90, 3, IPC_NOWAIT), 12, "length")
        same(found.raw[8:20], b"in the queue")
        with contextlib.suppress(OSError):
            raise Differs(f"another one of {call('msgrcv', number, found, 90, 0, IPC_NOWAIT)} bytes")


@held
def waits_in_a_system_call() -> Iterator[None]:
    """A child sleeps in a system call; the move must not end the call with EINTR."""
    left, right = socket.socketpair()

    def work() -> None:
        while True:
            try:
                data = right.recv(100)
            except OSError as error:
                data = str(error).encode()
            right.send(b"got " + data)

    if os.fork() == 0:
        work()
    while True:
        yield
        true(not readable(left.fileno(), 0), "its system call was interrupted")
        left.send(b"x")
        same(left.recv(100), b"got x")
