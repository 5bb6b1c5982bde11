"""The network lock: drop tables in the container's own network namespace (handover.md, rule 3).

A kernel acknowledges TCP data for a frozen process, so whenever a copy exists that may be thrown away, nothing may
reach it or leave it. CRIU's own lock ends with its dump when the tasks are left alive; hence ours.
"""

from agent.base.shell import Shell

TABLE = "transship"

# ARP too: a locked copy must neither answer for its address nor ask with it, or switches learn the wrong port.
# Loopback is dropped as well: a retransmission between two frozen sockets in the middle of a dump makes them disagree.
RULES = f"""\
add table inet {TABLE}
add chain inet {TABLE} in {{ type filter hook input priority -400; policy drop; }}
add chain inet {TABLE} out {{ type filter hook output priority -400; policy drop; }}
add chain inet {TABLE} via {{ type filter hook forward priority -400; policy drop; }}
add table arp {TABLE}
add chain arp {TABLE} in {{ type filter hook input priority -400; policy drop; }}
add chain arp {TABLE} out {{ type filter hook output priority -400; policy drop; }}
"""

# `add` before `delete` makes the deletion succeed where there is no table.
UNLOCK = f"""\
add table inet {TABLE}
delete table inet {TABLE}
add table arp {TABLE}
delete table arp {TABLE}
"""


def in_netns(pid: int, *argv: str) -> tuple[str, ...]:
    """The command, run in the network namespace of a process."""
    return ("nsenter", f"--net=/proc/{pid}/ns/net", *argv)


async def lock(shell: Shell, pid: int) -> None:
    """Drop every packet in the namespace of `pid`; one nft transaction, so there is no half-locked moment."""
    await shell.run(*in_netns(pid, "nft", "-f", "-"), stdin=RULES.encode(), label="lock network", timeout=10)


async def unlock(shell: Shell, pid: int) -> None:
    """Make sure that there is no lock."""
    await shell.run(*in_netns(pid, "nft", "-f", "-"), stdin=UNLOCK.encode(), label="unlock network", timeout=10)


async def is_locked(shell: Shell, pid: int) -> bool:
    done = await shell.run(*in_netns(pid, "nft", "list", "tables"), label="list tables", timeout=10)
    return f"inet {TABLE}" in done.stdout
