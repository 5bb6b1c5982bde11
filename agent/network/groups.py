"""Which multicast groups the sockets of a network namespace listen to: the kernel tells no more than that."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

OF_THE_KERNEL = {IPv4Address("224.0.0.1"), *map(IPv6Address, ("ff01::1", "ff02::1", "ff01::2", "ff02::2", "ff05::2"))}
SOLICITED = IPv6Network("ff02::1:ff00:0/104")
"""Of the interface's own addresses."""


def joined(pid: int) -> tuple[str, ...]:
    """The groups that were joined by programs; blocks for some microseconds."""
    folder = Path(f"/proc/{pid}/net")
    return parse((folder / "igmp").read_text(), (folder / "igmp6").read_text())


def parse(igmp: str, igmp6: str) -> tuple[str, ...]:
    found: set[IPv4Address | IPv6Address] = set()
    for line in igmp.splitlines()[1:]:
        if line.startswith("\t"):  # a group; other lines are of an interface
            found.add(IPv4Address(bytes.fromhex(line.split()[0])[::-1]))
    found |= {IPv6Address(bytes.fromhex(line.split()[2])) for line in igmp6.splitlines()}
    theirs = [group for group in found - OF_THE_KERNEL if group not in SOLICITED]
    return tuple(sorted(map(str, theirs)))
