"""Programs that wait for a time when they are moved: busybox's `sleep`, and one with every such call under way."""

import time
from dataclasses import dataclass

from lab.host import Host
from lab.shell import PATIENCE
from tests.e2e.fidelity import inspect
from tests.e2e.support import until

SECONDS = 6
EVENT_AFTER = 8
"""What would wait for ever is woken so late."""
SLEEPING = ("35", "230", "219")
"""nanosleep, clock_nanosleep; and restart_syscall, when the kernel makes one of them again."""
LATE_SECONDS = 5 * PATIENCE
"""For a machine that is busy."""
CALLS = """
import ctypes, os, sys, threading, time
SECONDS, EVENT_AFTER = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
readable, writable = os.pipe()
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
class Polled(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
def call(*arguments):
    result = libc.syscall(*[ctypes.c_long(each) if isinstance(each, int) else each for each in arguments])
    return result if result >= 0 else -ctypes.get_errno()
def nanosleep(left):
    wanted = Time(SECONDS, 0)
    return call(35, ctypes.byref(wanted), ctypes.byref(wanted if left == "same" else left) if left else 0)
def clock_nanosleep():
    return call(230, time.CLOCK_MONOTONIC, 0, ctypes.byref(Time(SECONDS, 0)), ctypes.byref(Time()))
def poll(milliseconds):
    return call(7, ctypes.byref(Polled(readable, 1, 0)), 1, milliseconds)
def futex():
    end = Time(int(time.clock_gettime(time.CLOCK_MONOTONIC)) + SECONDS, 0)
    return call(202, ctypes.byref(ctypes.c_int(7)), 9 | 128, 7, ctypes.byref(end), 0, 0xFFFFFFFF)
CALLS = {
    "nanosleep": lambda: nanosleep(Time()),
    "nanosleep of libraries": lambda: nanosleep("same"),
    "nanosleep without rest": lambda: nanosleep(None),
    "clock_nanosleep": clock_nanosleep,
    "sleep": lambda: libc.sleep(SECONDS),
    "poll": lambda: poll(SECONDS * 1000),
    "poll without end": lambda: poll(-1),
    "futex": futex,
}
def waits(name, how):
    began = time.clock_gettime(time.CLOCK_REALTIME)
    result = how()
    took = time.clock_gettime(time.CLOCK_REALTIME) - began
    os.write(1, f"{name}: {result} {took:.2f}\\n".encode())
for name, how in CALLS.items():
    if os.fork() == 0:
        waits(name, how)
        os._exit(0)
if os.fork() == 0:
    for name, how in CALLS.items():
        threading.Thread(target=waits, args=(f"thread, {name}", how), daemon=True).start()
    os.write(1, b"all wait: 0 0\\n")
    time.sleep(EVENT_AFTER)
    os.write(writable, b"x")
    time.sleep(1000)
for _ in CALLS:
    os.wait()
time.sleep(1000)
"""
LASTING = ("nanosleep without rest", "poll")
"""Nobody knows what is left of these, and they begin anew."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call has returned (an error is less than 0), and after how many seconds."""

    result: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Asleep:
    """A container that sleeps so many seconds, and between when and when it has begun."""

    name: str
    seconds: int
    from_then: float
    from_now: float


async def start_sleep(host: Host, name: str, seconds: int) -> Asleep:
    """busybox `sleep` as all that a container runs."""
    host.ensure_image("busybox")
    before = time.time()
    host.docker("run", "--detach", "--name", name, "busybox", "sleep", str(seconds))
    await sleeps(host, name)
    return Asleep(name, seconds, before, time.time())


async def sleeps(host: Host, name: str) -> None:
    await until(lambda: call_of(host, name) in SLEEPING, f"{name} sleeps at {host.name}")


async def start_calls(host: Host, name: str) -> None:
    host.ensure_image("py")
    words = ["py", "python3", "-c", CALLS, str(SECONDS), str(EVENT_AFTER)]
    host.docker("run", "--detach", "--name", name, *words)
    await until(lambda: "all wait" in returned(host, name), "all of them wait")


def call_of(host: Host, name: str) -> str:
    """The number of the system call in which the first process is; empty if there is none."""
    path = f"/proc/{inspect(host, name)['State']['Pid']}/syscall"
    return host.run(["cat", path], check=False).stdout.partition(" ")[0]


def returned(host: Host, name: str) -> dict[str, Returned]:
    found = {}
    for line in host.docker("logs", name).splitlines():
        if ": " in line:
            call, result, seconds = *line.split(": ")[:1], *line.split(": ")[1].split()
            found[call.strip("\N{WORD JOINER}")] = Returned(int(result), float(seconds))
    return found


async def sleeps_to_the_end(host: Host, asleep: Asleep, held: float) -> None:
    """It ends by itself, no sooner than it should, and later by not much more than it was `held`, in seconds."""
    await until(lambda: not inspect(host, asleep.name)["State"]["Running"], "the sleep has ended")
    assert inspect(host, asleep.name)["State"]["ExitCode"] == 0
    assert time.time() - asleep.from_then >= asleep.seconds
    assert time.time() - asleep.from_now < asleep.seconds + held + LATE_SECONDS, held


async def all_return(host: Host, name: str, held: float) -> None:
    """Every call comes to its end, and to no other."""
    await until(lambda: len(returned(host, name)) == 17, "all have returned")
    for call, found in returned(host, name).items():
        kind = call.removeprefix("thread, ")
        if kind == "all wait":
            continue
        ended = {"futex": {-110}, "poll": {0, 1}, "poll without end": {1}}.get(kind, {0})
        assert found.result in ended, (call, found)
        longest = {"poll without end": EVENT_AFTER}.get(kind, SECONDS) * (2 if kind in LASTING else 1)
        least = SECONDS - (1.01 if kind == "futex" else 0.01)  # that one is until a whole second of the clock
        assert least <= found.seconds < longest + held + LATE_SECONDS, (call, found, held)
