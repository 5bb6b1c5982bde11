"""What the kernel waits for when it is done for the first time: had before, where the kernel gives it."""

import os
from pathlib import Path

import pytest

from agent.checkpoint import grace


def test_an_event_is_a_descriptor_that_no_program_inherits_or_there_is_none() -> None:
    fd = grace.event()
    if fd >= 0:
        assert Path(f"/proc/self/fd/{fd}").readlink().name.startswith("anon_inode:[perf_event]")
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert grace.ATTRIBUTES.size == 112, "PERF_ATTR_SIZE_VER5: every kernel since 4.1 knows it"


def test_where_the_machine_is_not_known_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace, "PERF_EVENT_OPEN", {})
    assert grace.event() == -1
