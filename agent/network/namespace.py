"""Work done in another network namespace: by a command, or by a thread of this process."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def in_netns(pid: int, *argv: str) -> tuple[str, ...]:
    """The command, run in the network namespace of a process."""
    return ("nsenter", f"--net={path_of(pid)}", *argv)


def path_of(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


def is_ours(pid: int) -> bool:
    """Whether a process shares this agent's network namespace: the host's own, which other programs live on.

    Nothing there may be locked, announced or ended for the sake of a container.
    """
    return is_ours_at(path_of(pid))


def is_ours_at(path: str) -> bool:
    """The same of a namespace that stands at a path."""
    try:
        return os.path.samestat(os.stat(path), os.stat(path_of(os.getpid())))  # noqa: PTH116
    except OSError:  # it has ended
        return False


@contextmanager
def open_namespace(pid: int) -> Iterator[str]:
    """A path to the network namespace of a process, which stays good when the process has ended."""
    fd = os.open(path_of(pid), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def within(pid: int, work: Callable[[], T]) -> T:
    """What `work` returns when done in the network namespace of `pid`; blocks for as long as it takes.

    Raises:
        OSError: there is no such process.

    """
    return within_path(path_of(pid), work)


def within_path(path: str, work: Callable[[], T]) -> T:
    """The same in the namespace that stands at a path.

    By a thread that ends with it: a thread's namespace is its own, and this process's stays what it is.
    """
    done: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            _enter(path)
            done.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=f"in {path}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
    finally:
        os.close(fd)
