"""What runs in the containers of demo and tests, and how to tell whether anything of it was lost or came twice."""

from dataclasses import dataclass
from pathlib import Path

from agent.prework.container_log import NOTHING_SEEN
from lab.host import Host

COUNTER = """
import sys, time
ballast = bytearray({mib} << 20)      # memory that has to move; every page is touched, so that none is only promised
for page in range(0, len(ballast), 4096):
    ballast[page] = page >> 12 & 255
lines = open("/count", "a", buffering=1)
# Not the monotonic clock: CRIU restores into a time namespace in which it goes on as if nothing had been.
number, last = 0, time.clock_gettime(time.CLOCK_REALTIME)
while True:
    number += 1
    now = time.clock_gettime(time.CLOCK_REALTIME)
    gap, last = now - last, now
    ballast[number * 4096 % len(ballast)] = number & 255
    print(number, flush=True)
    lines.write(f"{{number}} {{gap:.4f}}\\n")
    time.sleep({pause})
"""

STACK_AT_PAGE = """
import ctypes, mmap, threading
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# of x86-64: rsp &= -4096; do pause(); while true
code.write(bytes.fromhex("55 4889e5 4881e400f0ffff b822000000 0f05 ebf7"))
wait = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
thread = threading.Thread(target=wait, daemon=True)
thread.start()
while not open(f"/proc/self/task/{thread.native_id}/syscall").read().startswith("34 "):
    pass
"""
"""Before a program: one of its threads waits from then on with its stack pointer at the very beginning of a page."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a counter has left: numbers in its log and in its file."""

    logged: list[int]
    written: list[int]
    gaps_s: list[float]
    """How long after the one before each number of the file came, by the machine's clock: blackouts are among them."""

    @property
    def missing(self) -> int:
        return sum(len(set(range(1, max(each, default=0) + 1)) - set(each)) for each in (self.logged, self.written))

    @property
    def duplicated(self) -> int:
        return sum(len(each) - len(set(each)) for each in (self.logged, self.written))

    @property
    def in_order(self) -> bool:
        return self.logged == sorted(self.logged) and self.written == sorted(self.written)


def run_counter(host: Host, name: str, *options: str, mib: int = 16, pause: float = 0.005) -> str:
    """Start a container that counts: in memory, into a file of its root file system, and into its log. Its id."""
    host.ensure_image("py")
    program = COUNTER.format(mib=mib, pause=pause)
    return host.docker("run", "-d", "--name", name, *options, "py", "python3", "-c", program).strip()


def has_stack_at_page(host: Host, name: str) -> bool:
    """Whether a thread of its first process waits with its stack pointer at the very beginning of a page.

    CRIU takes all its memory for a stack then, and dumps it at once also in post-copy (agent/checkpoint/stacks.py).
    """
    pid = host.docker("inspect", "--format", "{{.State.Pid}}", name).strip()
    threads = Path(f"/proc/{host.node.init().pid}/root/proc/{pid}/task").iterdir()
    said = [(thread / "syscall").read_text().split() for thread in threads]
    return any(len(words) > 1 and words[-2].endswith("000") for words in said)


def counted(host: Host, name: str, *, taken_back: int = 0) -> Counted:
    """What the counter has left so far, on the host where it is now.

    Each move that was taken back after the freeze may have left a line that looks empty (agent/prework/printed.py).
    """
    lines = host.docker("logs", name).split()
    for _ in range(taken_back):
        if NOTHING_SEEN.decode() in lines:
            lines.remove(NOTHING_SEEN.decode())
    logged = [int(line) for line in lines]
    written = rows(host.docker("exec", name, "cat", "/count", check=False))
    return Counted(logged, [number for number, _ in written], [gap for _, gap in written])


def rows(text: str) -> list[tuple[int, float]]:
    """The numbers in the counter's file, each with its gap; the last line may be half written."""
    found = [line.split() for line in text.splitlines()]
    return [(int(row[0]), float(row[1])) for row in found if len(row) == 2]
