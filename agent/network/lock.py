"""The network lock: drop tables in the container's own network namespace (handover.md, rule 3).

A kernel acknowledges TCP data for a frozen process, so whenever a copy exists that may be thrown away, nothing may
reach it or leave it. CRIU's own lock ends with its dump when the tasks are left alive; hence ours.
"""

from agent.base.shell import Shell
from agent.network import nft
from agent.network.namespace import in_netns, is_ours

TABLE = "transship"
CRIU_MARK = 0xC114
"""On the packets of libsoccr (soccr/soccr.c: SOCCR_MARK); those of the container have none, or another."""

# ARP too: a locked copy must neither answer for its address nor ask with it, or switches learn the wrong port.
# Loopback is dropped as well: a retransmission between two frozen sockets in the middle of a dump makes them disagree.
# Two things pass. CRIU's: it makes half-closed connections again by sending itself the other side's FIN. And that with
# which Docker 28 announces an IPv6 address when it attaches the network (libnetwork: advertiseAddrs), since it gives
# the container up if it may not: with a hop limit that makes every neighbour discard it (RFC 4861, 7.1.2).
RULES = f"""\
add table inet {TABLE}
add chain inet {TABLE} in {{ type filter hook input priority -400; policy drop; }}
add chain inet {TABLE} out {{ type filter hook output priority -400; policy drop; }}
add rule inet {TABLE} out icmpv6 type nd-neighbor-advert ip6 daddr ff02::1 ip6 hoplimit set 1 accept
add chain inet {TABLE} via {{ type filter hook forward priority -400; policy drop; }}
add rule inet {TABLE} in meta mark {CRIU_MARK} accept
add rule inet {TABLE} out meta mark {CRIU_MARK} accept
add table arp {TABLE}
add chain arp {TABLE} in {{ type filter hook input priority -400; policy drop; }}
add chain arp {TABLE} out {{ type filter hook output priority -400; policy drop; }}
"""

LAST_WORD = f"add rule inet {TABLE} out tcp flags & rst == rst accept\n"

# `add` before `delete` makes the deletion succeed where there is no table.
UNLOCK = f"""\
add table inet {TABLE}
delete table inet {TABLE}
add table arp {TABLE}
delete table arp {TABLE}
"""

GATE = f"""\
add table inet {TABLE}
add chain inet {TABLE} in {{ type filter hook input priority -400; policy accept; }}
add rule inet {TABLE} in FROMtcp flags & (fin | syn | rst | ack) == syn drop
"""
"""What turns new connections away and nothing else; a client asks again after a second, as in the blackout itself."""


async def lock(shell: Shell, pid: int) -> None:
    """Drop every packet in the namespace of `pid`; one nft transaction, so there is no half-locked moment."""
    await _nft(shell, pid, UNLOCK + RULES, "lock network")


async def lock_all_but_the_last_word(shell: Shell, pid: int) -> None:
    """The lock, through which a connection that is ended can tell its other side."""
    await _nft(shell, pid, UNLOCK + RULES + LAST_WORD, "lock network but for resets")


async def shut_gate(shell: Shell, pid: int, *, inner: bool = False) -> None:
    """Let no new connection in, and none be made within, if so wanted; in place of a lock, if there is one."""
    await _nft(shell, pid, UNLOCK + GATE.replace("FROM", "" if inner else 'iifname != "lo" '), "shut gate")


async def unlock(shell: Shell, pid: int) -> None:
    """Make sure that there is neither lock nor gate."""
    await _nft(shell, pid, UNLOCK, "unlock network")


async def _nft(shell: Shell, pid: int, rules: str, label: str) -> None:
    if is_ours(pid):  # a container on the host's network: the host stays on it
        return
    command = in_netns(pid, "nft", "-f", "-")
    if nft.is_there():
        await shell.done_here(*command, label=label, stdin=rules.encode(), work=lambda: nft.apply(pid, rules))
    else:
        await shell.run(*command, stdin=rules.encode(), label=label, timeout=10)


async def is_locked(shell: Shell, pid: int) -> bool:
    done = await shell.run(*in_netns(pid, "nft", "list", "tables"), label="list tables", timeout=10)
    return f"inet {TABLE}" in done.stdout
