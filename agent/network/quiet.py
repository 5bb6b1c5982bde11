"""The moment to freeze: when no connection is on its way to a program or out of one.

What the kernel has taken in and no process has accepted, or what a process has closed and the kernel has not delivered
yet, belongs to nobody, and CRIU leaves it behind without a word. So newcomers are turned away first; what is under way
is waited for, first with the container running, then, for the little that remains, with it frozen.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.base.errors import FreezeFailed
from agent.base.shell import Shell
from agent.base.tasks import both
from agent.checkpoint import freezer
from agent.network import lock, sockets
from agent.network.namespace import is_ours, path_of
from agent.network.sockets import Ownerless, ownerless

ACCEPT_SECONDS = 2.0
"""A program that has not accepted by then will hardly do so soon."""
SOON_SECONDS = 0.3
"""For what is not lost without it, or only depends on the other side's answer."""
ATTEMPTS = 4
"""Processes of the container that connect to each other may do so at any moment; over UNIX sockets nobody can tell
them not to.
"""
PAUSE = 0.005


@dataclass(frozen=True, slots=True)
class Held:
    """A container that was locked and frozen."""

    frozen_at: float
    """By the monotonic clock."""
    left: Ownerless
    """Connections that will not come along."""


def _always_good() -> bool:
    return True


async def hold(
    shell: Shell,
    pid: int,
    group: freezer.Cgroup,
    seconds: float,
    *,
    accepted: bool = True,
    good: Callable[[], bool] = _always_good,
) -> Held:
    """Lock the network and freeze the tasks.

    Args:
        shell: for nft.
        pid: the container's first process.
        group: its cgroup.
        seconds: for the freezer.
        accepted: whether every connection has to have been accepted.
        good: asked with the tasks frozen; where they are not so that a dump is good now, another moment is looked for,
            a few times. May block for a millisecond.

    Raises:
        FreezeFailed: a task does not freeze, or a program does not accept what waits for it.

    """
    if is_ours(pid):
        # Its connections end with the copy here, and so may those that come meanwhile: there is nothing to wait for.
        for last in _attempts():
            frozen_at = time.monotonic()
            await freezer.freeze(group, seconds)
            if last or await asyncio.to_thread(good):
                return Held(frozen_at, Ownerless())
            await freezer.thaw(group)
    await lock.shut_gate(shell, pid)
    for last in _attempts():
        before = await _settled(shell, pid, accepted)
        frozen_at = time.monotonic()
        # Both at once: what the kernel acknowledges between the two is in the receive queues before the dump begins.
        await both(lock.lock(shell, pid), freezer.freeze(group, seconds))
        left = await _look(pid)
        if left.closing:
            await lock.shut_gate(shell, pid)
            await _until(pid, lambda found: not found.closing, SOON_SECONDS)
            await lock.lock(shell, pid)
            left = await _look(pid)
        came = left.waiting > before.waiting or left.waiting_unix > before.waiting_unix
        if not came and (last or await asyncio.to_thread(good)):
            return Held(frozen_at, left)
        await lock.shut_gate(shell, pid, inner=came)  # the last ones came from within
        await freezer.thaw(group)
    raise _not_accepted(left.waiting + left.waiting_unix)


def _attempts() -> list[bool]:
    """Each attempt, and whether it is the last."""
    return [number == ATTEMPTS - 1 for number in range(ATTEMPTS)]


async def hang_up(shell: Shell, pid: int) -> None:
    """End the connections of a copy that will not run any more, and tell their other sides."""
    if not await asyncio.to_thread(sockets.connected, pid):
        return
    await lock.lock_all_but_the_last_word(shell, pid)
    await drop(pid)
    await lock.lock(shell, pid)


async def drop(pid: int) -> None:
    """End the connections of a copy that will not run any more; nobody hears of it where the network is locked."""
    with contextlib.suppress(OSError):  # it is gone
        await asyncio.to_thread(sockets.destroy, path_of(pid))


async def _settled(shell: Shell, pid: int, accepted: bool) -> Ownerless:
    """Give the running container the time to take in what has come; what is left then."""
    found = await _until(pid, _taken_in, SOON_SECONDS)
    if found.waiting and accepted:
        await lock.shut_gate(shell, pid, inner=True)
        found = await _until(pid, lambda found: not found.waiting, ACCEPT_SECONDS)
        if found.waiting:
            raise _not_accepted(found.waiting)
    return found


def _taken_in(found: Ownerless) -> bool:
    return not found.waiting and not found.waiting_unix and not found.opening


def _not_accepted(count: int) -> FreezeFailed:
    return FreezeFailed(
        f"{count} of its connections wait to be accepted, and CRIU can't carry those",
        hint="move it when the program has time to accept, or drop its connections with --tcp close",
    )


async def _until(pid: int, so: Callable[[Ownerless], bool], seconds: float) -> Ownerless:
    """Look until it is so, or the time is up; what was seen last."""
    end = time.monotonic() + seconds
    while not so(found := await _look(pid)) and time.monotonic() < end:
        await asyncio.sleep(PAUSE)
    return found


async def _look(pid: int) -> Ownerless:
    return await asyncio.to_thread(ownerless, pid)
