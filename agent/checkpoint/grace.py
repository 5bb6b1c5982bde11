"""What the kernel waits for when it is done for the first time, waited for before CRIU does it in the blackout.

CRIU stops tasks by a breakpoint of the processor. That is a perf event, and the first one that belongs to a task has
every switch between tasks look at events from then on (kernel/events/core.c: account_event): a grace period of RCU, 6
to 18 ms on two processors. While there is another one, however idle, it takes 0.02 ms. Where the kernel gives none
nothing is lost but the time.
"""

import ctypes
import platform
import struct

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
ATTRIBUTES = struct.Struct("<IIQ24xQ64x")
SOFTWARE, DUMMY = 1, 9
DISABLED_AND_NOT_OF_THE_KERNEL = 0b1100001
CLOSE_ON_EXEC = 8


def event() -> int:
    """An idle perf event of this process, open as long as the descriptor; -1 where there is none to have."""
    number = PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        return -1
    attributes = ATTRIBUTES.pack(SOFTWARE, ATTRIBUTES.size, DUMMY, DISABLED_AND_NOT_OF_THE_KERNEL)
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(number, attributes, 0, -1, -1, CLOSE_ON_EXEC))
