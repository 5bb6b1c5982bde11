"""System calls that a dump has interrupted, and how they are made again. Registers in, registers out: touches nothing.

Linux goes on with a call that waits for a time (nanosleep, poll, a futex with a time-out) by what it has noted in the
task (`restart_block`), which no dump can read: CRIU lets such a call return EINTR, in the images and in the tasks that
run on (compel/arch/x86/src/lib/infect.c: compel_get_task_regs). Here it is made again instead. A call that Linux itself
would have ended (epoll_wait, or one that a signal has come to) has its EINTR as ever. On x86-64, in 64-bit programs.
"""

from collections.abc import Mapping

EINTR = 4
SIZE = 2
"""Bytes of the instruction `syscall`."""
POLL, NANOSLEEP, FUTEX, RESTART, CLOCK_NANOSLEEP = 7, 35, 202, 219, 230
ARGUMENTS = ("di", "si", "dx", "r10", "r8", "r9")
FUTEX_WAIT, FUTEX_WAIT_BITSET = 0, 9
FUTEX_FLAGS = 128 | 256
MATCH_ANY = 0xFFFFFFFF
ABSOLUTE = 1
CLOCKS = 16
MOST_POLLED = 1 << 20
SPACE_FROM, SPACE_TO = 1 << 32, 1 << 47
"""Where a program's stack and most of its memory are: numbers that are no int, and addresses beyond doubt."""

Registers = Mapping[str, int]
"""By the names of user_x86_regs_entry (CRIU's images/core-x86.proto), each as it is without a sign."""


def again(found: Registers) -> dict[str, int] | None:
    """The registers that differ for the call to be made again; None if it is none of ours, or better ends.

    A sleep goes on with what is left of it, which the kernel has written to where the program wants to have it: that
    place becomes its request. Where it wants none, and for the time-out of a poll, nobody knows what is left: it is
    waited for as a whole, which is longer, and no error. The time-out of FUTEX_WAIT is relative too; what uses it
    (musl, Go) has to look again after any wake-up, keeps the time better by itself, and has its EINTR.
    """
    if _signed(found["ax"]) != -EINTR:
        return None
    call = _number(found)
    if call == NANOSLEEP:
        changed = {"di": found["si"]} if found["si"] else {}
    elif call == CLOCK_NANOSLEEP and not found["si"] & ABSOLUTE:  # Linux makes that again by itself, and so does CRIU
        changed = {"dx": found["r10"]} if found["r10"] else {}
    elif call == POLL or (call == FUTEX and found["si"] & ~FUTEX_FLAGS == FUTEX_WAIT_BITSET):
        changed = {}  # and the time-out of the latter is a time of the clock
    else:
        return None
    return {**changed, "orig_ax": call}


def waiting(syscall: str) -> bool:
    """Whether a thread waits in one of these, or has been interrupted in it; by its /proc/PID/syscall."""
    words = syscall.split()
    if len(words) < len(ARGUMENTS) + 1 or not words[0].isdigit():  # it runs, or is in no call
        return False
    values = zip(ARGUMENTS, (int(word, 16) for word in words[1:]), strict=False)
    return again({**dict(values), "ax": (1 << 64) - EINTR, "orig_ax": int(words[0])}) is not None


def _number(found: Registers) -> int | None:
    """Which call it is; None where that can't be told.

    The kernel itself makes one again that was interrupted before (a pause, a SIGSTOP), as `restart_syscall`, with the
    registers of the first time. Only what can be nothing else is taken for it.
    """
    if found["orig_ax"] != RESTART:
        return found["orig_ax"]
    first, second, third = (found[name] for name in ("di", "si", "dx"))
    if first < CLOCKS and second == 0 and _is_address(third):
        return CLOCK_NANOSLEEP
    if first < CLOCKS:
        return None
    if _is_address(second):
        return NANOSLEEP
    if second & ~FUTEX_FLAGS in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
        # with all bits wanted, as libraries do; else it could be a poll of so many
        sure = second & ~FUTEX_FLAGS == FUTEX_WAIT_BITSET and found["r9"] & MATCH_ANY == MATCH_ANY
        return FUTEX if sure else None
    return POLL if second < MOST_POLLED else None


def _is_address(value: int) -> bool:
    return SPACE_FROM <= value < SPACE_TO


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
