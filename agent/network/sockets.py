"""Connections that no process holds: the kernel has them, CRIU does not see them, and they would be lost in a move.

Three kinds: not accepted yet, not established yet, and closed by the process but not by the kernel, which still has
something to deliver. Asked by sock_diag(7), which costs a millisecond where /proc/net/tcp costs ten.
"""

import contextlib
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from agent.network.namespace import is_ours, is_ours_at, within, within_path

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
CONFIRMED = 0x5  # NLM_F_REQUEST | NLM_F_ACK
DONE, ERROR = 3, 2
HEADER = struct.Struct("=IHHII")
ESTABLISHED, FIN_WAIT1, LAST_ACK, LISTEN, CLOSING, SYN_RECV = 1, 4, 9, 10, 11, 3
INET_STATES = 1 << FIN_WAIT1 | 1 << LAST_ACK | 1 << LISTEN | 1 << CLOSING | 1 << SYN_RECV
INET = struct.Struct("=BBBB48xIIIII")
"""Of inet_diag_msg: family, state, timer, retransmissions; then expiry, both queues, user, inode."""
FAMILIES = ((socket.AF_INET, IPv4Address, 4), (socket.AF_INET6, IPv6Address, 16))
CONNECTED = 0xFFF & ~(1 << LISTEN | 1 << 6 | 1 << 7)
"""Neither listening nor in TIME_WAIT nor closed."""
ANY = 0xFFF
INFO, MEMORY, MD5, ULP = 2, 7, 18, 19  # INET_DIAG_INFO, _SKMEMINFO, _MD5SIG, _ULP_INFO
ULP_NAME = 1
SHOW_QUEUES, QUEUES = 0x10, 4
UNIX = struct.Struct("=BBBBIII")
NESTED = 1 << 15
"""A mark on an attribute's kind."""


@dataclass(frozen=True, slots=True)
class Ownerless:
    """How many there are of each kind."""

    waiting: int = 0
    """Established by the kernel; a program that listens for TCP has not accepted them."""
    waiting_unix: int = 0
    """The same on UNIX sockets."""
    opening: int = 0
    """SYN_RECV: answered, not confirmed by the other side."""
    closing: int = 0
    """Closed here, and the other side has not confirmed the last of it, though it has had no time to."""
    stuck: int = 0
    """The same where it has had time: what was sent last has been sent again."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What has to be there for the sockets of a namespace to be made again."""

    addresses: frozenset[str]
    """Where TCP listens, and where UDP is bound."""
    interfaces: frozenset[str]
    """Of sockets that are bound to one (SO_BINDTODEVICE, packet sockets, link-local addresses)."""
    connected: frozenset[str] = frozenset()
    """From where UDP sends that is connected, which takes a route as well."""


def ownerless(pid: int) -> Ownerless:
    """Look, in the network namespace of `pid`; blocks for about a millisecond."""
    return within(pid, _look)


def connected(pid: int) -> bool:
    """Whether there is a TCP connection in the network namespace of `pid`; blocks for about a millisecond."""
    return within(pid, _connected)


def _connected() -> bool:
    forms = (
        struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, CONNECTED)
        for family in (socket.AF_INET, socket.AF_INET6)
    )
    return any(True for form in forms for _ in _dump(form))


def buffered(pid: int) -> int:
    """Bytes that the queues of TCP connections may hold when they are dumped, in the network namespace of `pid`.

    A queue that is not empty may be full in a moment; those of an idle connection are taken as they are.
    """
    return 0 if is_ours(pid) else within(pid, _buffers)  # on the host's network none is carried


def _buffers() -> int:
    total = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << MEMORY - 1, CONNECTED)
        for message in _dump(request):
            found = _attribute(message, INET.size, MEMORY, "=6I") or (0,) * 6
            received, most_received, _, most_sent, _, unsent = found
            total += (most_received if received else 0) + (most_sent if unsent else 0)
    return total


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket is bound: TCP that listens, or UDP."""

    protocol: Literal["tcp", "udp"]
    address: IPv4Address | IPv6Address
    port: int
    interface: int
    inode: int


def bound(pid: int) -> Bound:
    """Look, in the network namespace of `pid`."""
    return within(pid, _bound)


def on_the_host(inodes: Collection[int]) -> tuple[Place, ...]:
    """Where these sockets are bound, which are in the network namespace of this agent."""
    return tuple(place for place in _places() if place.inode in inodes)


def bound_to(places: Collection[Place]) -> Bound:
    """What has to be there for them alone."""
    addresses = {str(place.address) for place in places if not _is_everywhere(place.address)}
    interfaces = {socket.if_indextoname(place.interface) for place in places if place.interface}
    return Bound(frozenset(addresses), frozenset(interfaces))


def _places() -> Iterator[Place]:
    for family, address_of, length in FAMILIES:
        for protocol, states in ((socket.IPPROTO_TCP, 1 << LISTEN), (socket.IPPROTO_UDP, ANY)):
            for message in _dump(struct.pack("=BBBxI48x", family, protocol, 0, states)):
                port = struct.unpack_from("!H", message, 4)[0]
                interface, inode = struct.unpack_from("=I", message, 40)[0], struct.unpack_from("=I", message, 68)[0]
                yield Place(
                    "tcp" if protocol == socket.IPPROTO_TCP else "udp",
                    address_of(message[8 : 8 + length]),
                    port,
                    interface,
                    inode,
                )


def _is_everywhere(address: IPv4Address | IPv6Address) -> bool:
    """Every host has it."""
    return address.is_unspecified or address.is_loopback or address.is_multicast


def _bound() -> Bound:
    found: dict[bool, set[str]] = {False: set(), True: set()}
    indices = {int(line.split()[4]) for line in Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]}
    for family, address_of, length in FAMILIES:
        for protocol, states in ((socket.IPPROTO_TCP, CONNECTED | 1 << LISTEN), (socket.IPPROTO_UDP, ANY)):
            for message in _dump(struct.pack("=BBBxI48x", family, protocol, 0, states)):
                indices.add(struct.unpack_from("=I", message, 40)[0])
                address = address_of(message[8 : 8 + length])
                if not _is_everywhere(address) and (protocol == socket.IPPROTO_UDP or message[1] == LISTEN):
                    found[message[1] == ESTABLISHED].add(str(address))
    names = {socket.if_indextoname(index) for index in indices - {0}}
    return Bound(frozenset(found[False]), frozenset(names - {"lo"}), frozenset(found[True]))


def extraordinary(pid: int) -> frozenset[str]:
    """What TCP sockets in the network namespace of `pid` have that CRIU does not look at."""
    return within(pid, _extraordinary)


def _extraordinary() -> frozenset[str]:
    found: set[str] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        form = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << INFO - 1, CONNECTED | 1 << LISTEN)
        for message in _dump(form):  # the kernel says these two only along with its statistics
            attributes = _attributes(message, INET.size)
            if MD5 in attributes:
                found.add("MD5 signatures (TCP_MD5SIG)")
            if ULP in attributes:
                name = _attributes(attributes[ULP], 0).get(ULP_NAME, b"").rstrip(b"\0").decode()
                found.add(f"a protocol in the kernel above it ({name}, TCP_ULP)")
    return frozenset(found)


def destroy(namespace: str) -> None:
    """End every TCP connection in a network namespace, that of a copy which will never run.

    The connections of a process that is killed live on without it, and the namespace with them, interface and MAC
    address included: while it is locked for some minutes, since nothing that they send is confirmed.
    """
    if not is_ours_at(namespace):  # they would be the host's
        within_path(namespace, _destroy)


def _destroy() -> None:
    # For a kernel without SOCK_DESTROY: give up after the first attempt. /proc/sys/net shows the reader's namespace.
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/tcp_orphan_retries").write_text("1")
    for family in (socket.AF_INET, socket.AF_INET6):
        form = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, CONNECTED)
        for message in list(_dump(form + bytes(48))):
            with contextlib.suppress(OSError), _link() as link:  # it may have ended meanwhile
                _ask(link, SOCK_DESTROY, CONFIRMED, form + message[4:52])
                link.recv(4096)


def _look() -> Ownerless:
    waiting = opening = closing = stuck = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, INET_STATES)
        for message in _dump(request):
            _, state, _, again, _, queued, _, _, inode = INET.unpack_from(message)
            if state == LISTEN:
                waiting += queued
            elif state == SYN_RECV:
                opening += 1
            elif inode == 0 and again == 0:
                closing += 1
            elif inode == 0:
                stuck += 1
    request = struct.pack("=BBxxIIIII", socket.AF_UNIX, 0, 1 << LISTEN, 0, SHOW_QUEUES, 0, 0)
    return Ownerless(waiting, sum(_queued(message) for message in _dump(request)), opening, closing, stuck)


def _queued(message: bytes) -> int:
    """Connections that wait at a listening UNIX socket."""
    waiting, _ = _attribute(message, UNIX.size, QUEUES, "=II") or (0, 0)
    return waiting


def _attribute(message: bytes, at: int, wanted: int, form: str) -> tuple[int, ...] | None:
    """The numbers of one attribute of a message, whose attributes begin at a place."""
    content = _attributes(message, at).get(wanted)
    return None if content is None else struct.unpack_from(form, content)


def _attributes(message: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        found[kind & NESTED - 1] = message[at + 4 : at + length]
        at += max(length + 3 & ~3, 4)
    return found


def _dump(request: bytes) -> Iterator[bytes]:
    """The messages that answer a request for a list."""
    with _link() as link:
        _ask(link, SOCK_DIAG_BY_FAMILY, DUMP, request)
        while True:
            data = link.recv(1 << 16)
            at = 0
            while at < len(data):
                length, kind = HEADER.unpack_from(data, at)[:2]
                if kind == DONE:
                    return
                if kind == ERROR:
                    code = -struct.unpack_from("=i", data, at + HEADER.size)[0]
                    raise OSError(code, "sock_diag")
                yield data[at + HEADER.size : at + length]
                at += length + 3 & ~3


def _link() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)


def _ask(link: socket.socket, kind: int, flags: int, request: bytes) -> None:
    link.send(HEADER.pack(HEADER.size + len(request), kind, flags, 0, 0) + request)
