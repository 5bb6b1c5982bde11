"""What `ip address del` and `ip route del` ask of the kernel, without the start of a program: for within the blackout.

Messages are those of rtnetlink(7); each is answered before the next is sent.
"""

import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

HEADER = struct.Struct("=IHHII")
ERROR = 2
REQUEST_AND_ACK = 0x01 | 0x04
DELADDR, DELROUTE = 21, 25
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_OIF, RTA_PRIORITY = 4, 6
MAIN_TABLE = 254
NOWHERE = 255
"""Of a route that is to be deleted: of whatever scope (RT_SCOPE_NOWHERE)."""
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def delete_address(interface: int, ip: IPv4Address | IPv6Address) -> None:
    """Take a single address off an interface of this thread's network namespace.

    Raises:
        OSError: as the kernel says, EADDRNOTAVAIL where it is not there.

    """
    head = struct.pack("=BBBBI", FAMILY[ip.version], ip.max_prefixlen, 0, 0, interface)
    _ask(DELADDR, head + _attribute(IFA_LOCAL, ip.packed) + _attribute(IFA_ADDRESS, ip.packed))


def delete_default_route(interface: int, version: int, metric: int) -> None:
    """Take the default route of a metric off an interface of this thread's network namespace.

    Raises:
        OSError: as the kernel says, ESRCH where it is not there.

    """
    head = struct.pack("=BBBBBBBBI", FAMILY[version], 0, 0, 0, MAIN_TABLE, 0, NOWHERE, 0, 0)
    words = _attribute(RTA_OIF, struct.pack("=I", interface)) + _attribute(RTA_PRIORITY, struct.pack("=I", metric))
    _ask(DELROUTE, head + words)


def _attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content


def _ask(kind: int, message: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(HEADER.pack(HEADER.size + len(message), kind, REQUEST_AND_ACK, 1, 0) + message)
        answer = link.recv(4096)
    assert HEADER.unpack_from(answer)[1] == ERROR, "an acknowledgement is an error of code 0"
    if code := -struct.unpack_from("=i", answer, HEADER.size)[0]:
        raise OSError(code, os.strerror(code))
