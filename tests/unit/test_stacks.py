"""What CRIU takes for a stack: seen from outside, of processes that wait."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.checkpoint import stacks
from lab.workloads import STACK_AT_PAGE

PROGRAM = "import sys, time\nprint('there', flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def waiting(request: pytest.FixtureRequest) -> Iterator[int]:
    argv = [sys.executable, "-c", request.param + PROGRAM]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize("waiting", [STACK_AT_PAGE], indirect=True)
def test_a_process_counts_of_which_a_thread_waits_with_its_stack_at_the_beginning_of_a_page(waiting: int) -> None:
    assert stacks.dumped_at_once([waiting]) > 2 << 20, "all of its memory"
    assert stacks.dumped_at_once([waiting, waiting]) == 2 * stacks.dumped_at_once([waiting])


@pytest.mark.parametrize("waiting", [""], indirect=True)
def test_the_others_memory_follows(waiting: int) -> None:
    end = time.monotonic() + 10
    while not (words := Path(f"/proc/{waiting}/syscall").read_text().split())[0].isdigit():
        assert time.monotonic() < end, words
    expected = int(words[-2], 16) % 4096 == 0  # which this one is by chance, 1 in 256
    assert bool(stacks.dumped_at_once([waiting])) == expected


def test_what_has_ended_counts_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert stacks.dumped_at_once([process.pid]) == 0
