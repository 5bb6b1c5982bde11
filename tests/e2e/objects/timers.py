"""Timers and signals."""

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator

from objects.held import call, held, libc, readable, same, true

LONG = 1000.0
"""Seconds of a timer that is to be still running."""
SLACK = 60.0
"""It must not have lost or won more than that."""
BLOCKED = signal.SIGRTMIN + 5


@held
def timerfd() -> Iterator[None]:
    """One that is still running, one that ticks, one that has gone off and was not read, one by the wall clock."""
    long = call("timerfd_create", time.CLOCK_MONOTONIC, 0)
    ticking = call("timerfd_create", time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    rung = call("timerfd_create", time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    wall = call("timerfd_create", time.CLOCK_REALTIME, 0)
    _set(long, LONG, 0)
    _set(ticking, 0.05, 0.05)
    _set(wall, time.time() + LONG, 0, absolute=True)
    began = time.time()
    while True:
        _set(rung, 0.001, 0)
        true(readable(rung), "it does not go off at all")
        yield
        passed = time.time() - began
        for fd in (long, wall):
            true(abs(_left(fd) - (LONG - passed)) < SLACK, f"{_left(fd)} s left after {passed} s")
        true(readable(ticking), "it does not tick any more")
        os.read(ticking, 8)
        true(readable(ticking), "it does not tick on")
        same(os.read(rung, 8), struct.pack("Q", 1), "the one that has gone off")


def _set(fd: int, first: float, every: float, *, absolute: bool = False) -> None:
    spec = struct.pack("qqqq", int(every), int(every % 1 * 1e9), int(first), int(first % 1 * 1e9))
    call("timerfd_settime", fd, int(absolute), spec, None)


def _left(fd: int) -> float:
    spec = ctypes.create_string_buffer(32)
    call("timerfd_gettime", fd, spec)
    seconds, nanoseconds = struct.unpack("qq", spec.raw[16:])
    return float(seconds + nanoseconds / 1e9)


@held
def interval_timer() -> Iterator[None]:
    """setitimer: it goes on, and fires."""
    rung = threading.Event()
    signal.signal(signal.SIGALRM, lambda *_: rung.set())
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONG)
    while True:
        yield
        rung.clear()
        true(rung.wait(5), "it does not fire any more")
        true(0 < signal.getitimer(signal.ITIMER_VIRTUAL)[0] <= LONG, "the virtual one is not running any more")


@held
def posix_timers() -> Iterator[None]:
    """timer_create: one long, one ticking by a real-time signal with a value."""
    long, ticking = ctypes.c_void_p(), ctypes.c_void_p()
    none = struct.pack("QiiQ", 0, 0, 1, 0) + bytes(40)  # SIGEV_NONE
    ticks = struct.pack("QiiQ", 4711, BLOCKED, 0, 0) + bytes(40)  # SIGEV_SIGNAL
    signal.pthread_sigmask(signal.SIG_BLOCK, [BLOCKED])
    call("timer_create", time.CLOCK_MONOTONIC, none, ctypes.byref(long))
    call("timer_create", time.CLOCK_REALTIME, ticks, ctypes.byref(ticking))
    call("timer_settime", long, 0, struct.pack("qqqq", 0, 0, int(LONG), 0), None)
    call("timer_settime", ticking, 0, struct.pack("qqqq", 0, 50_000_000, 0, 50_000_000), None)
    began = time.time()
    while True:
        yield
        spec = ctypes.create_string_buffer(32)
        call("timer_gettime", long, spec)
        left, passed = struct.unpack("qq", spec.raw[16:])[0], time.time() - began
        true(abs(left - (LONG - passed)) < SLACK, f"{left} s left after {passed} s")
        for _ in range(3):
            found = signal.sigtimedwait([BLOCKED], 5)
            true(found is not None, "it does not tick any more")
            assert found is not None
            same(found.si_code, -2, "by a timer")


@held
def signals_pending() -> Iterator[None]:
    """Blocked and pending: one for the process, one for the thread, three queued ones with values."""
    queued = signal.SIGRTMIN + 6
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGWINCH, queued])
    libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    while True:
        os.kill(os.getpid(), signal.SIGUSR2)
        signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)
        for value in (1, 2, 3):
            call("sigqueue", os.getpid(), queued, value)
        yield
        true({signal.SIGUSR2, signal.SIGWINCH, queued} <= signal.sigpending(), f"pending: {signal.sigpending()}")
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        true({signal.SIGUSR2, signal.SIGWINCH, queued} <= blocked, f"blocked: {blocked}")
        for number in (signal.SIGUSR2, signal.SIGWINCH, queued, queued, queued):
            found = signal.sigtimedwait([number], 0)
            assert found is not None, f"{number} is not pending any more"
            if number != queued:
                same(found.si_pid, os.getpid(), "from whom")
        same(signal.sigtimedwait([signal.SIGUSR2, queued], 0), None, "one that came twice")


@held
def handlers() -> Iterator[None]:
    """A handler, an ignored signal, and nothing that the move itself has sent."""
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    signal.signal(signal.SIGCONT, lambda number, _: heard.append(number))
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    signal.siginterrupt(signal.SIGUSR1, False)
    while True:
        yield
        same(heard, [], "heard during the move")
        os.kill(os.getpid(), signal.SIGURG)
        os.kill(os.getpid(), signal.SIGUSR1)
        same(heard, [signal.SIGUSR1])
        heard.clear()
        ignored = {number for number in (signal.SIGURG, signal.SIGPIPE) if signal.getsignal(number) == signal.SIG_IGN}
        same(ignored, {signal.SIGURG, signal.SIGPIPE}, "ignored")


@held
def signalfd() -> Iterator[None]:
    """One signal was there before, one comes after."""
    number = signal.SIGRTMIN + 7
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    mask = struct.pack("Q", 1 << (number - 1))
    fd = call("signalfd", -1, mask + bytes(120), os.O_NONBLOCK)
    while True:
        os.kill(os.getpid(), number)
        yield
        same(struct.unpack_from("I", os.read(fd, 128))[0], number, "the one from before")
        os.kill(os.getpid(), number)
        true(readable(fd), "it hears nothing any more")
        same(struct.unpack_from("I", os.read(fd, 128))[0], number)


@held
def clocks() -> Iterator[None]:
    """The monotonic clocks go on where they were: never back, and not by the difference of two machines' uptimes.

    The processor time that was used begins anew: CRIU can't give a task a past.
    """
    names = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, 6)  # 6: CLOCK_MONOTONIC_COARSE
    wall, before = time.time(), [time.clock_gettime(name) for name in names]
    while True:
        yield
        passed = time.time() - wall
        for name, then in zip(names, before, strict=True):
            now = time.clock_gettime(name)
            true(0 < now - then < passed + SLACK, f"clock {name} went from {then} to {now} in {passed} s")


@held
def sleeping_thread() -> Iterator[None]:
    """A thread in a long sleep is still in it; one in a short sleep has woken."""
    woken: list[str] = []

    def sleep(name: str, seconds: float) -> None:
        time.sleep(seconds)
        woken.append(name)

    threading.Thread(target=sleep, args=("long", LONG), daemon=True).start()
    threading.Thread(target=sleep, args=("short", 0.5), daemon=True).start()
    while True:
        yield
        deadline = time.monotonic() + 5
        while "short" not in woken and time.monotonic() < deadline:
            time.sleep(0.01)
        same(woken, ["short"], "woken")
