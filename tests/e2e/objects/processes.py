"""What belongs to a process: relatives, limits, rights, names."""

import ctypes
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

from objects.held import Child, held, libc, readable, same, stat, status, true

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_NAME = 1, 2, 15
PR_SET_SUBREAPER, PR_GET_SUBREAPER, PR_CAP_AMBIENT = 36, 37, 47
PR_SET_NO_NEW_PRIVS = 38
CAP_NET_RAW = 13


def _fork(work: Callable[[], object] = lambda: None) -> int:
    """A child that sleeps; `work` is called in it first."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        work()
        os.write(write, b"x")
        while True:
            signal.pause()
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return pid


@held
def stopped_child() -> Iterator[None]:
    """Stopped by SIGSTOP before; its parent was told, and may be told once more: CRIU stops it anew."""
    pid = _fork()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    while True:
        yield
        found, how = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED | os.WNOHANG)
        true(found == 0 or (os.WIFSTOPPED(how) and os.WSTOPSIG(how) == signal.SIGSTOP), f"the parent is told {how:#x}")
        same(stat(pid)[0], "T", "its state")
        os.kill(pid, signal.SIGCONT)
        found, how = os.waitpid(pid, os.WCONTINUED)
        same((found, os.WIFCONTINUED(how)), (pid, True), "after SIGCONT")
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)


@held
def stop_not_told_yet() -> Iterator[None]:
    """A child that has stopped, and whose parent has not asked."""
    pid = _fork()
    while True:
        os.kill(pid, signal.SIGSTOP)
        while stat(pid)[0] != "T":
            time.sleep(0.001)
        yield
        same(stat(pid)[0], "T", "its state")
        same(os.waitpid(pid, os.WUNTRACED | os.WNOHANG)[0], pid, "the parent is told")
        os.kill(pid, signal.SIGCONT)


@held
def watching_parent() -> Iterator[None]:
    """A thread waits for any stop, continuation or end of a running child, and sees none."""
    pid = _fork()
    seen: list[tuple[int, int]] = []
    threading.Thread(target=lambda: seen.append(os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)), daemon=True).start()
    while True:
        yield
        same(seen, [], "seen")
        same(stat(pid)[0], "S", "the child's state")


@held
def zombie() -> Iterator[None]:
    while True:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        while stat(pid)[0] != "Z":
            time.sleep(0.001)
        killed = _fork()
        os.kill(killed, signal.SIGKILL)
        while stat(killed)[0] != "Z":
            time.sleep(0.001)
        yield
        same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7)
        same(os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]), -signal.SIGKILL)


@held
def sessions_and_groups() -> Iterator[None]:
    own = _fork(os.setsid)
    group = _fork(lambda: os.setpgid(0, 0))
    member = _fork(lambda: os.setpgid(0, group))
    before = {pid: stat(pid)[1:5] for pid in (own, group, member, os.getpid())}
    while True:
        yield
        same({pid: stat(pid)[1:5] for pid in before}, before, "parent, group, session, terminal")


@held
def orphan() -> Iterator[None]:
    """Its parent is gone, so it belongs to the first process."""
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        pid = _fork()
        os.write(write, str(pid).encode())
        os._exit(0)
    os.waitpid(first, 0)
    pid = int(os.read(read, 20))
    while True:
        yield
        same(stat(pid)[1], "1", "its parent")


@held
def threads() -> Iterator[None]:
    """With names, signal masks and values of their own; they wait for a lock that another one holds."""
    lock, values = threading.Lock(), threading.local()
    lock.acquire()
    numbers: list[int] = []
    done: list[int] = []
    ready, met = threading.Barrier(4), threading.Barrier(4)

    def work(number: int) -> None:
        values.number = number
        libc.prctl(PR_SET_NAME, f"worker-{number}".encode(), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 10 + number])
        numbers.append(threading.get_native_id())
        ready.wait()
        while True:
            with lock:
                done.append(values.number)
            met.wait()

    for number in range(3):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    ready.wait()

    def look() -> list[tuple[str, str]]:
        return [(status(f"self/task/{tid}")["Name"], status(f"self/task/{tid}")["SigBlk"]) for tid in numbers]

    before = look()
    while True:
        yield
        same(look(), before, "names and masks")
        same(done, [], "got the lock")
        lock.release()
        while len(done) < 3:
            time.sleep(0.001)
        same(sorted(done), [0, 1, 2], "values of their own")
        done.clear()
        lock.acquire()
        met.wait(5)


@held
def names_and_environment() -> Iterator[None]:
    os.environ["KEPT"] = "in the program"
    libc.prctl(PR_SET_NAME, b"holder", 0, 0, 0)

    def look() -> list[bytes | str]:
        found: list[bytes | str] = [os.environ["KEPT"], status()["Name"], os.readlink("/proc/self/exe")]
        for name in ("environ", "cmdline", "auxv"):
            with open(f"/proc/self/{name}", "rb") as file:
                found.append(file.read())
        return [*found, os.readlink("/proc/self/cwd"), os.readlink("/proc/self/root"), sys.executable]

    os.chdir("/srv")
    os.umask(0o027)
    before = look()
    while True:
        yield
        same(look(), before)
        same(os.umask(0o027), 0o027, "umask")
        same(os.getpid(), int(os.readlink("/proc/self")))


@held
def limits() -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (777, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    before = {name: resource.getrlimit(getattr(resource, name)) for name in names}
    while True:
        yield
        same({name: resource.getrlimit(getattr(resource, name)) for name in names}, before)


@held
def scheduling() -> Iterator[None]:
    """Niceness, policy, and who is to die first when memory runs out. A choice of processors does not come along."""

    def work() -> None:
        os.nice(7)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("321")

    def batch() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    pid, other = _fork(work), _fork(batch)

    def look() -> list[object]:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            score = file.read().strip()
        nice = os.getpriority(os.PRIO_PROCESS, pid)
        return [nice, score, os.sched_getscheduler(other)]

    before = look()
    same(before, [7, "321", os.SCHED_BATCH], "to begin with")
    while True:
        yield
        same(look(), before)


@held
def rights() -> Iterator[None]:
    """Ambient and dropped capabilities, another user, seccomp filters of Docker's and of its own."""

    def ambient() -> None:
        header, data = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
        libc.capget(header, data)
        effective, permitted, _ = struct.unpack_from("III", data.raw)
        data = ctypes.create_string_buffer(struct.pack("IIIIII", effective, permitted, 1 << CAP_NET_RAW, 0, 0, 0))
        libc.capset(header, data)
        libc.prctl(PR_CAP_AMBIENT, 2, CAP_NET_RAW, 0, 0)
        libc.prctl(24, 5, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_KILL

    pid, filtered = _fork(ambient), Child(_filtered)
    same(filtered.ask("begin"), "filtered")
    keys = [f"Cap{kind}" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    keys += ["Uid", "Gid", "Groups", "Seccomp", "Seccomp_filters", "NoNewPrivs"]

    def look() -> list[dict[str, str]]:
        return [{key: status(each)[key] for key in keys} for each in (os.getpid(), pid, filtered.pid)]

    before = look()
    same(before[1]["CapAmb"], f"{1 << CAP_NET_RAW:016x}", "ambient, to begin with")
    while True:
        yield
        same(look(), before)
        same(filtered.ask("look"), "EPERM", "what its own filter forbids")


def _filtered(line: str) -> str:
    """In a child: a filter of its own that forbids getpriority; then whether it does."""
    if line == "begin":
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, 140), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
        program = b"".join(struct.pack("HBBI", *each) for each in code)
        buffer = ctypes.create_string_buffer(program)
        filters = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return "filtered" if libc.prctl(22, 2, filters, 0, 0) == 0 else os.strerror(ctypes.get_errno())
    ctypes.set_errno(0)
    libc.syscall(140, 0, 0)
    return "EPERM" if ctypes.get_errno() == 1 else f"errno {ctypes.get_errno()}"


@held
def ways_to_die() -> Iterator[None]:
    """The signal at a parent's death, and who adopts orphans."""
    answers = Child(_process_attributes)
    same(answers.ask("set"), "set")
    while True:
        yield
        same(answers.ask("get"), f"{int(signal.SIGUSR1)} 1")


def _process_attributes(line: str) -> str:
    if line == "set":
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
        libc.prctl(PR_SET_SUBREAPER, 1, 0, 0, 0)
        return "set"
    death, reaper = ctypes.c_int(), ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death), 0, 0, 0)
    libc.prctl(PR_GET_SUBREAPER, ctypes.byref(reaper), 0, 0, 0)
    return f"{death.value} {reaper.value}"


@held
def process_handle() -> Iterator[None]:
    """A pidfd of a child: alive, then not."""
    while True:
        pid = _fork()
        fd = os.pidfd_open(pid)
        yield
        true(not readable(fd, 0), "it says that the child has ended")
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        true(readable(fd), "it does not hear of the child's end")
        os.waitpid(pid, 0)
        os.close(fd)


@held
def alternative_stack_and_restartable_sequences() -> Iterator[None]:
    """What the C library has registered with the kernel for its threads."""
    stack = ctypes.create_string_buffer(65536)
    libc.sigaltstack(struct.pack("QixxxxQ", ctypes.addressof(stack), 0, 65536), None)

    def look() -> list[bytes]:
        now, head, size = ctypes.create_string_buffer(24), ctypes.c_void_p(), ctypes.c_size_t()
        libc.sigaltstack(None, now)
        libc.syscall(274, 0, ctypes.byref(head), ctypes.byref(size))  # get_robust_list
        return [now.raw, struct.pack("QQ", head.value or 0, size.value)]

    before = look()
    while True:
        yield
        same(look(), before)
