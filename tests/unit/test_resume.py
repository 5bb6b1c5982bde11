"""A call that was ended as CRIU does it, in a real process that is stopped by ptrace: the kernel makes it again."""

import ctypes
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.checkpoint import calls, resume

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of x86-64")
SLEEPS = """
import ctypes, time
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
libc = ctypes.CDLL(None, use_errno=True)
began, left = time.monotonic(), Time()
result = libc.syscall(35, ctypes.byref(Time(0, 500_000_000)), ctypes.byref(left))
print(result, ctypes.get_errno(), time.monotonic() - began)
"""


@pytest.mark.parametrize(("mended", "result"), [(False, [-1, 4]), (True, [0, 0])])
def test_a_sleep_that_was_ended_goes_on_with_what_is_left(mended: bool, result: list[int]) -> None:
    program = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 10
    while not calls.waiting(Path(f"/proc/{program.pid}/syscall").read_text()):
        assert time.monotonic() < end, "it sleeps"
    spoilt: list[int] = []
    # who traces is a thread, and all of it has to be the same one
    worker = threading.Thread(target=lambda: spoilt.append(spoil(program.pid, mended=mended)))
    worker.start()
    worker.join()
    found = str(program.communicate(timeout=10)[0]).split()
    assert [int(each) for each in found[:2]] == result
    assert (float(found[2]) >= 0.5) is mended, "as long as it was to be, and no shorter"
    assert spoilt == [516], "the kernel would have gone on by its own notes"


def spoil(pid: int, *, mended: bool) -> int:
    """End its call as a dump does, let the product mend that if wanted, and let it go; what was in its registers."""
    assert resume._seize(pid)
    end = time.monotonic() + 10
    while not resume._stopped(pid):
        assert time.monotonic() < end, "it stops"
    registers = (ctypes.c_uint64 * len(resume.NAMES))()
    assert resume._ptrace(resume.GETREGS, pid, ctypes.byref(registers))
    was, place = registers[resume.NAMES.index("ax")], resume.NAMES.index("ax")
    registers[place] = 2**64 - calls.EINTR
    assert resume._ptrace(resume.SETREGS, pid, ctypes.byref(registers))
    assert resume._make_again(pid) is True if mended else True
    assert resume._ptrace(resume.DETACH, pid)
    return 2**64 - was
