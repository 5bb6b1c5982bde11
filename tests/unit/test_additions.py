"""What a container's network has beyond what Docker gave: told from what Docker and the kernel put there."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from agent.base.shell import Shell
from agent.network import additions
from agent.network.additions import Given, interfaces, routes, rules, tables

GIVEN = Given(
    addresses=frozenset({"10.77.0.150", "fd77::96"}),
    macs=frozenset({"02:42:0a:4d:00:96"}),
    gateways=frozenset({"10.77.0.1", "fd77::1"}),
)


def link(name: str = "eth0", kind: str = "macvlan", **fields: Any) -> dict[str, Any]:
    usual = {"flags": ["UP"], "address": "02:42:0a:4d:00:96", "linkinfo": {"info_kind": kind}, "addr_info": []}
    return {"ifname": name, **usual, **fields}


def address(local: str, scope: str = "global", **fields: Any) -> dict[str, Any]:
    return {"local": local, "scope": scope, **fields}


def test_what_docker_gave_is_no_addition() -> None:
    lo = link("lo", "", addr_info=[address("127.0.0.1", "host"), address("::1", "host")])
    eth0 = link(
        addr_info=[
            address("10.77.0.150"),
            address("fd77::96"),
            address("fe80::42:aff:fe4d:96", "link"),
            address("2001:db8::42:aff:fe4d:96", dynamic=True),
        ]
    )
    tunl0 = link("tunl0", "ipip", flags=["NOARP"], address="0.0.0.0")
    shared = link("eth1", "ipvlan", address="52:54:00:00:00:01")
    assert list(interfaces([lo, eth0, tunl0, shared], GIVEN)) == []


def test_addresses_and_interfaces_of_its_own_are_named() -> None:
    found = [
        link("lo", "", addr_info=[address("192.0.2.1")]),
        link(addr_info=[address("10.77.0.150"), address("10.77.0.99")]),
        link("tun0", "tun"),
        link("eth5", "veth", address="02:00:00:00:00:05"),
        link("sit0", "sit"),
    ]
    assert list(interfaces(found, GIVEN)) == [
        "the address 192.0.2.1 on lo",
        "the address 10.77.0.99 on eth0",
        "the interface tun0",
        "the interface eth5",
        "the interface sit0",
    ]


def test_routes() -> None:
    usual = [
        {"dst": "default", "gateway": "10.77.0.1", "dev": "eth0"},
        {"dst": "10.77.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link"},
        {"dst": "fd77::1", "dev": "eth0", "protocol": "boot"},
        {"dst": "default", "gateway": "fe80::1", "protocol": "ra"},
        {"dst": "default", "dev": "eth0"},
    ]
    own = [
        {"dst": "default", "gateway": "10.77.0.9", "dev": "eth0"},
        {"dst": "192.0.2.0/24", "gateway": "10.77.0.1", "dev": "eth0"},
        {"type": "blackhole", "dst": "198.51.100.0/24"},
    ]
    assert list(routes([*usual, *own], GIVEN)) == [
        "the route default via 10.77.0.9",
        "the route 192.0.2.0/24 via 10.77.0.1",
        "the route 198.51.100.0/24",
    ]


def test_rules() -> None:
    usual = [{"priority": number, "src": "all", "table": "main"} for number in (0, 32766, 32767)]
    assert list(rules([*usual, {"priority": 100, "src": "all", "fwmark": "0x1", "table": "51820"}])) == [
        "the routing rule 100"
    ]


def rule(chain: str, *expressions: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "nat", "chain": chain, "expr": list(expressions)}}


def test_firewalls() -> None:
    dns = [
        {"metainfo": {"version": "1.1.1"}},
        {"table": {"family": "ip", "name": "nat"}},
        {"chain": {"family": "ip", "table": "nat", "name": "OUTPUT", "hook": "output", "policy": "accept"}},
        rule("OUTPUT", {"match": {}}, {"jump": {"target": "DOCKER_OUTPUT"}}),
        rule("DOCKER_OUTPUT", {"match": {}}, {"dnat": {}}),
        {"chain": {"family": "inet", "table": "transship", "name": "in", "policy": "drop"}},
    ]
    assert list(tables(dns)) == []
    assert list(tables([*dns, rule("OUTPUT", {"drop": None})])) == ["firewall rules (table ip nat)"]
    shut = {"chain": {"family": "inet", "table": "filter", "name": "input", "policy": "drop"}}
    assert list(tables([shut])) == ["firewall rules (table inet filter)"]


@pytest.fixture
def pid() -> Iterator[int]:
    """A process with a network namespace of its own, with one of each."""
    script = """
        ip link set lo up
        ip link add eth0 address 02:42:0a:4d:00:96 type veth peer name other
        ip address add 10.77.0.150/24 dev eth0
        ip address add 10.77.0.99/24 dev eth0
        ip link set eth0 up
        ip link set other up
        ip route add 192.0.2.0/24 via 10.77.0.1
        ip rule add fwmark 1 lookup 51820
        nft add table inet own
        nft 'add chain inet own in { type filter hook input priority 0; }'
        nft add rule inet own in tcp dport 1 drop
        echo up
        exec sleep 60
    """
    with subprocess.Popen(["unshare", "--net", "sh", "-ec", script], stdout=-1) as it, contextlib.ExitStack() as stack:
        stack.callback(it.kill)
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        yield it.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
async def test_asked_of_a_real_one(pid: int) -> None:
    assert await additions.look(Shell(), pid, GIVEN) == (
        "the interface other",
        "the address 10.77.0.99 on eth0",
        "the route 192.0.2.0/24 via 10.77.0.1",
        "the routing rule 32765",
        "firewall rules (table inet own)",
    )
