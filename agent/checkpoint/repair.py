"""TCP connections that a CRIU which was killed at its dump had in its hand: they are given back to the container.

CRIU puts each connection into repair (TCP_REPAIR) to read its state, and all are until it ends. From one in repair a
program reads nothing but EPERM, and what it writes is taken for sent (net/ipv4/tcp.c, tcp_output.c). CRIU only looks:
with repair off all is as before. But the tasks run as soon as CRIU is dead, since it has thawed them to stop them by
ptrace: one that waits in `recv` has its EPERM by now. One that waits in `poll`, as event loops do, does not notice, for
the network is locked until later.
"""

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

TCP_REPAIR, OFF = 19, 0
PIDFD_GETFD = 438
"""The same on every architecture, since Linux 5.6."""
_libc = ctypes.CDLL(None, use_errno=True)


def give_back(pids: Iterable[int]) -> int:
    """Have every TCP connection of these processes leave repair; how many did. Blocks for some microseconds each."""
    return sum(_leaves(connection) for pid in pids for connection in connections(pid))


def connections(pid: int) -> Iterator[socket.socket]:
    """Copies of a process's TCP sockets, open until the next one; none of one that has ended."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(entry.readlink()).startswith("socket:"):
                        with socket.socket(fileno=_copy(process, int(entry.name))) as found:
                            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                                yield found
        finally:
            os.close(process)


def _copy(process: int, number: int) -> int:
    """Open a process's descriptor here as well.

    Raises:
        OSError: it has closed it, or this agent may not.

    """
    found = int(_libc.syscall(PIDFD_GETFD, process, number, 0))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.set_inheritable(found, False)
    return found


def _leaves(connection: socket.socket) -> bool:
    try:
        if not connection.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
            return False
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, OFF)
        # The kernel has forgotten what this was (net/ipv4/tcp.c: tcp_repair_set). Of a connection it matters to a
        # server that starts anew beside it, and those have it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        return False
    return True
