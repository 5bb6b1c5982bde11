"""A restored container's addresses before its network is there, and their announcement once it runs.

CRIU binds every socket to the address it had. Docker 28 attaches the network only after the restore, so until then
the addresses stand on `lo`: as /32 and /128 (a wider prefix makes the whole subnet local and its packets are answered
with RST), with a default route of a high metric (without one, dockerd fails to set its gateway: "file exists").
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

from agent.base.shell import Shell
from agent.network import rtnetlink
from agent.network.namespace import in_netns, is_ours, within

METRIC = 1_000_000
NONLOCAL_BIND = Path("/proc/sys/net/ipv4/ip_nonlocal_bind")
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
"""By address, since a line of `ip -batch` takes no option for the family."""
ANNOUNCEMENTS = 2
"""Sent per address: one may fall into a switch's port that is just coming up."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address on one of the container's interfaces."""

    interface: str
    mac: str
    ip: IPv4Address | IPv6Address


def stand_in(addresses: Sequence[str]) -> str:
    """`ip -batch` lines that put the addresses (with or without prefix length) on lo."""
    lines = ["link set lo up"]
    for text in addresses:
        ip = ip_interface(text).ip
        lines.append(f"addr add {ip}/{ip.max_prefixlen} dev lo{' nodad noprefixroute' if ip.version == 6 else ''}")
    for family in sorted({ip_interface(text).version for text in addresses}):
        lines.append(f"route add {DEFAULT[family]} dev lo metric {METRIC}")
    return "\n".join(lines) + "\n"


def stand_down(addresses: Sequence[str]) -> str:
    """The way back of `stand_in`."""
    lines = [
        f"route del {DEFAULT[family]} dev lo metric {METRIC}"
        for family in sorted({ip_interface(text).version for text in addresses})
    ]
    for text in addresses:
        ip = ip_interface(text).ip
        lines.append(f"addr del {ip}/{ip.max_prefixlen} dev lo")
    return "\n".join(lines) + "\n"


async def take_down_stand_in(shell: Shell, pid: int, addresses: Sequence[str]) -> None:
    """Make sure that the addresses are no longer on lo; the network has its own by now."""
    if addresses:
        await shell.done_here(
            *in_netns(pid, "ip", "-force", "-batch", "-"),
            stdin=stand_down(addresses).encode(),
            label="addresses off lo",
            work=lambda: _stand_down(pid, addresses),
        )


def _stand_down(pid: int, addresses: Sequence[str]) -> None:
    def take() -> None:
        lo = socket.if_nametoindex("lo")
        for version in {ip_interface(text).version for text in addresses}:
            with contextlib.suppress(OSError):  # what is gone already must not keep the others
                rtnetlink.delete_default_route(lo, version, METRIC)
        for text in addresses:
            with contextlib.suppress(OSError):
                rtnetlink.delete_address(lo, ip_interface(text).ip)

    with contextlib.suppress(OSError):  # the process is gone
        within(pid, take)


def bind_as_usual(pid: int, wanted: str) -> None:
    """Programs bind to addresses of their own again, or as the container's --sysctl says; blocks for a moment.

    During the restore any address will do: of a listening program's IPv4 address CRIU can't be told that it is to come.
    """
    if not is_ours(pid):  # the host's setting was not changed
        within(pid, lambda: NONLOCAL_BIND.write_text(str(int(wanted or 0))))


async def as_usual(shell: Shell, pid: int, stand_in: Sequence[str], sysctls: Mapping[str, str]) -> None:
    """Make sure that nothing is left in the network namespace that was there for the restore alone."""
    with contextlib.suppress(OSError):  # the process is gone
        await asyncio.to_thread(bind_as_usual, pid, sysctls.get("net.ipv4.ip_nonlocal_bind", ""))
    await take_down_stand_in(shell, pid, stand_in)


def announce(pid: int) -> list[str]:
    """Tell the neighbours of `pid`'s network namespace where its addresses are now; returns what was announced.

    Gratuitous ARP (RFC 5227, 3) and unsolicited neighbour advertisements (RFC 4861, 7.2.6). Until then switches send
    frames for the MAC to the port where it was. Blocks for about a millisecond.
    """
    return [] if is_ours(pid) else within(pid, _announce_all)


def addresses_of(pid: int) -> list[str]:
    """The global addresses in `pid`'s network namespace; none where that is the host's own. Blocks for a moment."""
    return [] if is_ours(pid) else within(pid, lambda: [str(found.ip) for found in _addresses()])


def _announce_all() -> list[str]:
    said: list[str] = []
    # one socket for all, since the kernel waits at the end of each; of protocol 0, which takes nothing in
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        for address in _addresses():
            for _ in range(ANNOUNCEMENTS):
                raw.sendto(_frame(address), (address.interface, 0))
            said.append(f"{address.ip} at {address.mac}")
    return said


def _addresses() -> list[Address]:
    """The global addresses in the network namespace of this thread."""
    found: list[Address] = []
    macs: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            mac = fcntl.ioctl(probe, 0x8927, request)[18:24]  # SIOCGIFHWADDR
            if name == "lo" or not any(mac):
                continue
            macs[name] = mac.hex(":")
            try:
                raw = fcntl.ioctl(probe, 0x8915, request)[20:24]  # SIOCGIFADDR
            except OSError:
                continue  # no IPv4 address
            found.append(Address(name, macs[name], IPv4Address(raw)))
    for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
        raw_ip, _, _, scope, _, name = line.split()
        if name in macs and scope == "00":  # global
            found.append(Address(name, macs[name], IPv6Address(bytes.fromhex(raw_ip))))
    return found


def _frame(address: Address) -> bytes:
    mac = bytes.fromhex(address.mac.replace(":", ""))
    if isinstance(address.ip, IPv4Address):
        return _gratuitous_arp(mac, address.ip)
    return _neighbour_advertisement(mac, address.ip)


def _gratuitous_arp(mac: bytes, ip: IPv4Address) -> bytes:
    ether = b"\xff" * 6 + mac + struct.pack("!H", 0x0806)
    return ether + struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, ip.packed, b"\0" * 6, ip.packed)


def _neighbour_advertisement(mac: bytes, ip: IPv6Address) -> bytes:
    all_nodes = IPv6Address("ff02::1")
    override = 0x20000000  # replace what the neighbours have
    body = struct.pack("!BBHI16sBB6s", 136, 0, 0, override, ip.packed, 2, 1, mac)
    pseudo = ip.packed + all_nodes.packed + struct.pack("!I3xB", len(body), 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + ip.packed + all_nodes.packed
    return bytes.fromhex("333300000001") + mac + struct.pack("!H", 0x86DD) + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
