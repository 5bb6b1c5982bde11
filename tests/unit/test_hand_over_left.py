"""A hand-over folder whose runtime was killed: whoever waits there for a word of it does not wait for ever."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from agent.base.shell import Shell
from agent.doors.handover import HandOver
from agent.doors.restore_scripts import put_wrapper
from agent.runtime import handover

SECONDS = 10.0


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandOver:
    """One with its fifos, which nobody has open."""
    monkeypatch.setattr(handover, "ROOT", str(tmp_path))
    hand_over = HandOver(Shell(), "c" * 64)
    for folder in (handover.BIN, handover.IMAGES, handover.LAZY):
        (hand_over.path / folder).mkdir(parents=True)
    for fifo in (handover.ARMED, f"{handover.IMAGES}/{handover.INVENTORY}", f"{handover.LAZY}/{handover.INVENTORY}"):
        os.mkfifo(hand_over.path / fifo)
    put_wrapper(hand_over.path, hand_over.path / "tools")
    return hand_over


def until_it_opens(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the kernel has it wait for the fifo's other end (fs/pipe.c)."""
    end = time.monotonic() + SECONDS
    while Path(f"/proc/{process.pid}/wchan").read_text() != "wait_for_partner":
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_runc_takes_for_criu_does_not_wait_for_a_runtime_that_was_killed(left: HandOver) -> None:
    with subprocess.Popen([left.path / handover.BIN / "criu", "--version"]) as wrapper:
        until_it_opens(wrapper)
        left.send_away()
        assert wrapper.wait(SECONDS) == 1
    late = subprocess.run([left.path / handover.BIN / "criu", "--version"], timeout=SECONDS, capture_output=True)
    assert late.returncode != 0, "nor does one that comes later"


@pytest.mark.parametrize("place", [handover.IMAGES, handover.LAZY])
def test_nor_does_criu_for_its_first_image(left: HandOver, place: str) -> None:
    fifo = left.path / place / handover.INVENTORY
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as criu:
        until_it_opens(criu)
        left.send_away()
        assert criu.communicate(timeout=SECONDS) == (b"", None)
    assert not fifo.exists()


def test_images_that_are_there_stay(left: HandOver) -> None:
    inventory = left.images / handover.INVENTORY
    inventory.unlink()
    inventory.write_bytes(b"an image")
    left.send_away()
    assert inventory.read_bytes() == b"an image"
    left.send_away()
