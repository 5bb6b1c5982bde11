"""How long the runtime waits for CRIU: until it holds the tasks, or it is certain that it never will."""

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from agent.runtime import restore

LITTLE, LONG = 0.05, 30.0


class Runc:
    """The ends of what the runtime watches, as a runc and its CRIU would write to them."""

    def __init__(self) -> None:
        self.held, self.says_held = os.pipe()
        self.ended, self.ends = os.pipe()
        self.calls, self.says_call = os.pipe()

    def calls_criu(self, process: "subprocess.Popen[bytes]") -> None:
        os.write(self.says_call, b"%d\n" % process.pid)

    def close(self) -> None:
        for each in (self.held, self.says_held, self.ended, self.ends, self.calls, self.says_call):
            os.close(each)


@pytest.fixture
def runc() -> Iterator[Runc]:
    made = Runc()
    yield made
    made.close()


@pytest.fixture
def criu() -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def waited(runc: Runc, seconds: float, first: int | None = None) -> int:
    return restore.when_held(runc.held, runc.ended, runc.calls, seconds, first=first)


def test_what_criu_holds_is_told(runc: Runc, criu: "subprocess.Popen[bytes]") -> None:
    runc.calls_criu(criu)
    os.write(runc.says_held, b"42\n")
    assert waited(runc, LONG) == 42


def test_an_end_of_runc_is_the_end_of_it(runc: Runc) -> None:
    os.write(runc.ends, b"x")
    assert waited(runc, LONG) == 0


@pytest.mark.parametrize("reaped", [True, False])
def test_a_criu_that_was_killed_is_not_waited_for(runc: Runc, criu: "subprocess.Popen[bytes]", reaped: bool) -> None:
    runc.calls_criu(criu)
    criu.kill()
    if reaped:
        criu.wait()
    assert waited(runc, LITTLE) == 0


def test_the_end_of_one_call_is_not_the_end_of_the_next(runc: Runc, criu: "subprocess.Popen[bytes]") -> None:
    """runc asks CRIU for its version first."""
    with subprocess.Popen(["true"]) as version:
        runc.calls_criu(version)
        version.wait()
        runc.calls_criu(criu)
        os.write(runc.says_held, b"7\n")
        assert waited(runc, LITTLE) == 7


@pytest.mark.parametrize("reaped", [True, False])
def test_a_first_process_that_dockerd_has_killed_is_not_waited_for(
    runc: Runc, criu: "subprocess.Popen[bytes]", reaped: bool
) -> None:
    """CRIU goes on waiting for it: it is runc's child."""
    runc.calls_criu(criu)
    first, say_first = os.pipe()
    with subprocess.Popen(["sleep", "100"]) as process:
        os.write(say_first, b"%d\n" % process.pid)
        process.kill()
        if reaped:
            process.wait()
        assert waited(runc, LONG, first) == 0
    os.close(first)
    os.close(say_first)


@pytest.mark.parametrize("made", [True, False])
def test_a_first_process_that_lives_is_waited_for(runc: Runc, criu: "subprocess.Popen[bytes]", made: bool) -> None:
    """Also where nothing is said of it, since nothing had to be made."""
    first, say_first = os.pipe()
    if made:
        os.write(say_first, b"%d\n" % criu.pid)
    os.close(say_first)
    runc.calls_criu(criu)
    later = threading.Timer(0.1, os.write, (runc.says_held, b"9\n"))
    later.start()
    assert waited(runc, LITTLE, first) == 9
    os.close(first)
