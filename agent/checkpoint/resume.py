"""A container goes on after a dump: with its connections, thawed, and the calls that CRIU has interrupted made again.

CRIU leaves its tasks with EINTR where they waited for a time (calls.py). As long as they are frozen none has seen it
yet: each is stopped by ptrace, the cgroup thawed, and the kernel told to make the call again, or not if a signal
comes. Who traces ends with this thread, whatever becomes of it, and so does its hold on the tasks.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from agent.base.tasks import in_own_thread, to_the_end
from agent.checkpoint import calls, freezer, repair
from agent.checkpoint.freezer import Cgroup

log = logging.getLogger("agent.resume")

SEIZE, INTERRUPT, GETREGS, SETREGS, DETACH = 0x4206, 0x4207, 12, 13, 17
NAMES = (
    *("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax"),
    *("ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""user_regs_struct."""
CODE_64 = 0x33
"""The code segment of a program of 64 bits."""
AGAIN = -514 % (1 << 64)
"""ERESTARTNOHAND: the kernel makes the call again when the task runs, or lets it end with EINTR for a handler."""
ALL_THREADS = 0x40000000
STOP_SECONDS = 2.0
LOOK_SECONDS = 0.0002
_libc = ctypes.CDLL(None)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


async def give_back(group: Cgroup) -> None:
    """Make sure that no dump has a connection in hand: before anything can come in, if the network is locked."""
    if back := await asyncio.to_thread(repair.give_back, group.tasks()):
        log.warning("connections that a dump had left in repair go on: %d", back)


async def thaw(group: Cgroup) -> None:
    """Make sure that the cgroup is not frozen, and that no dump has ended a call in it; one that is gone is neither."""
    if platform.machine() == "x86_64" and group.is_frozen():
        try:
            if told := await to_the_end(in_own_thread(lambda: _thaw(group))):
                log.info("calls that a dump had interrupted are made again: %d", told)
        except OSError as error:  # as CRIU has left them, then
            log.warning("calls that a dump has interrupted end with EINTR: %s", error)
    await freezer.thaw(group)


def _thaw(group: Cgroup) -> int:
    """Thaw it; how many calls are made again."""
    held = [thread for thread in _waiting(group) if _seize(thread)]
    freezer.thaw_now(group)
    told, end = 0, time.monotonic() + STOP_SECONDS
    for thread in held:
        while not _stopped(thread) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        told += _make_again(thread)
        _ptrace(DETACH, thread)
    return told


def waits(group: Cgroup) -> bool:
    """Whether a process, by its first thread, waits in a call that CRIU ends also when it takes memory alone."""
    for pid in group.tasks():
        with contextlib.suppress(OSError):
            if calls.waiting(Path(f"/proc/{pid}/syscall").read_text()):
                return True
    return False


def _waiting(group: Cgroup) -> Iterator[int]:
    """The threads of which a dump may have ended a call."""
    for pid in group.tasks():
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
                if calls.waiting(Path(f"/proc/{pid}/task/{thread}/syscall").read_text()):
                    yield int(thread)


def _seize(thread: int) -> bool:
    """Have it stop before it returns to its program."""
    return _ptrace(SEIZE, thread) and _ptrace(INTERRUPT, thread)


def _stopped(thread: int) -> bool:
    """Whether it has; or is gone."""
    try:
        found, _ = os.waitpid(thread, os.WNOHANG | ALL_THREADS)
    except ChildProcessError:
        return True
    return found == thread


def _make_again(thread: int) -> bool:
    registers = (ctypes.c_uint64 * len(NAMES))()
    if not _ptrace(GETREGS, thread, ctypes.byref(registers)):
        return False
    found = dict(zip(NAMES, registers, strict=True))
    changed = calls.again(found) if found["cs"] == CODE_64 else None
    if changed is None:
        return False
    for name, value in {**changed, "ax": AGAIN}.items():
        registers[NAMES.index(name)] = value
    return _ptrace(SETREGS, thread, ctypes.byref(registers))


def _ptrace(request: int, thread: int, data: "ctypes._CArgObject | None" = None) -> bool:
    return bool(_libc.ptrace(request, thread, None, data) == 0)
