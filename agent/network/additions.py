"""What a container's network has that Docker did not give it: made from within (NET_ADMIN), or by hand on the host.

A moved container gets its network from the target's Docker, and CRIU has no part in it. So these would be gone, and
nobody would be told. Reading changes nothing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.base.shell import Shell
from agent.network.lock import TABLE
from agent.network.namespace import in_netns

KINDS = frozenset({"veth", "macvlan", "ipvlan"})
"""Of the interfaces that Docker makes."""
OF_THE_KERNEL = frozenset(
    {"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0", "teql0"}
)
"""It puts them into every namespace when the module is there; down, they do nothing."""
LOOPBACK = frozenset({"127.0.0.1", "::1"})
PRIORITIES = frozenset({0, 32766, 32767})
"""Of the routing rules that every namespace has."""
DOCKER = "DOCKER_"
"""How the chains of Docker's embedded DNS begin."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """What Docker says that it has given."""

    addresses: frozenset[str]
    macs: frozenset[str]
    gateways: frozenset[str]


async def look(shell: Shell, pid: int, given: Given) -> tuple[str, ...]:
    """Each addition by name, in the network namespace of `pid`."""

    async def ask(*argv: str) -> Any:
        done = await shell.run(*in_netns(pid, *argv), label=argv[0], timeout=10)
        return json.loads(done.stdout or "[]")

    found = [*interfaces(await ask("ip", "-j", "-d", "address"), given)]
    for family in ("-4", "-6"):
        found += routes(await ask("ip", "-j", family, "route"), given)
        found += rules(await ask("ip", "-j", family, "rule"))
    ruleset = await ask("nft", "-j", "list", "ruleset")
    return tuple(dict.fromkeys([*found, *tables(ruleset["nftables"])]))


def interfaces(links: Iterable[Json], given: Given) -> Iterator[str]:
    """By `ip -j -d address`."""
    for link in links:
        name, kind = link["ifname"], link.get("linkinfo", {}).get("info_kind", "")
        if name != "lo" and not _is_dockers(link, kind, given):
            if name not in OF_THE_KERNEL or "UP" in link["flags"]:
                yield f"the interface {name}"
            continue
        for address in link["addr_info"]:
            local = address.get("local", "")
            usual = address["scope"] != "global" or address.get("dynamic")
            if not usual and local not in given.addresses and not (name == "lo" and local in LOOPBACK):
                yield f"the address {local} on {name}"


def _is_dockers(link: Json, kind: str, given: Given) -> bool:
    # an ipvlan interface has the MAC address of its parent, which Docker does not say
    return kind in KINDS and (kind == "ipvlan" or not given.macs or link.get("address") in given.macs)


def routes(found: Iterable[Json], given: Given) -> Iterator[str]:
    """By `ip -j route`: of the main table."""
    for route in found:
        target, gateway = route["dst"], route.get("gateway", "")
        usual = route.get("protocol") in ("kernel", "ra") or route.get("scope") == "link" or target in given.gateways
        if target == "default":
            usual = usual or not gateway or gateway in given.gateways
        if not usual:
            yield f"the route {target}{f' via {gateway}' if gateway else ''}"


def rules(found: Iterable[Json]) -> Iterator[str]:
    """By `ip -j rule`."""
    for rule in found:
        if rule["priority"] not in PRIORITIES:
            yield f"the routing rule {rule['priority']}"


def tables(ruleset: Iterable[Json]) -> Iterator[str]:
    """By `nft -j list ruleset`: the tables that do something, but for Docker's."""
    for entry in ruleset:
        chain, rule = entry.get("chain", {}), entry.get("rule", {})
        table = chain.get("table") or rule.get("table")
        if table is None or table == TABLE:
            continue
        if chain.get("policy") == "drop" or (rule and not _is_for_docker(rule)):
            yield f"firewall rules (table {chain.get('family') or rule['family']} {table})"


def _is_for_docker(rule: Json) -> bool:
    jumps = [str(each["jump"]["target"]) for each in rule["expr"] if "jump" in each]
    return str(rule["chain"]).startswith(DOCKER) or any(target.startswith(DOCKER) for target in jumps)
