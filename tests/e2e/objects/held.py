"""How an object is declared, and what a check says."""

import ctypes
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

Hold = Callable[[], Iterator[None]]
OBJECTS: list[Hold] = []
libc = ctypes.CDLL(None, use_errno=True)
SOON = 5.0
"""Seconds in which something that is due must have happened; a bound, not an expectation."""


class Differs(Exception):
    """An object is not what it was."""


def held(hold: Hold) -> Hold:
    OBJECTS.append(hold)
    return hold


def same(found: object, wanted: object, what: str = "") -> None:
    if found != wanted:
        raise Differs(f"{what + ': ' if what else ''}{found!r} instead of {wanted!r}")


def true(so: object, what: str) -> None:
    if not so:
        raise Differs(what)


def call(name: str, *args: Any) -> int:
    """A function of the C library; its errno as an OSError."""
    ctypes.set_errno(0)
    result: int = getattr(libc, name)(*args)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return result


def readable(fd: int, seconds: float = SOON) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def status(pid: int | str = "self") -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


class Child:
    """A child that does what it is told, line by line: a second process with memory of its own."""

    def __init__(self, work: Callable[[str], object]) -> None:
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(down[1])
            os.close(up[0])
            with os.fdopen(down[0]) as asked, os.fdopen(up[1], "w", buffering=1) as answers:
                for line in asked:
                    try:
                        print(work(line.strip()), file=answers)
                    except BaseException as error:
                        print(f"{type(error).__name__}: {error}", file=answers)
            os._exit(0)
        os.close(down[0])
        os.close(up[1])
        self._down, self._up = os.fdopen(down[1], "w", buffering=1), os.fdopen(up[0])

    def ask(self, line: str) -> str:
        print(line, file=self._down)
        return self._up.readline().strip()


def another(program: str) -> str:
    """What a fresh process prints that runs `program`."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30)
    return (done.stdout + done.stderr).strip()
