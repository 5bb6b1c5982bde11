"""What /proc shows of this very process: real descriptors of each kind are told apart."""

import ctypes
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agent.migration import view
from agent.migration.view import OpenFile


@pytest.fixture
def opened() -> Iterator[dict[int, str]]:
    """Descriptors of many kinds, and what each should be called."""
    libc = ctypes.CDLL(None)
    with ExitStack() as stack:
        expected: dict[int, str] = {}
        for family, kind, protocol, name in (
            (socket.AF_INET, socket.SOCK_STREAM, 0, "TCP"),
            (socket.AF_INET6, socket.SOCK_DGRAM, 0, "UDPv6"),
            (socket.AF_UNIX, socket.SOCK_STREAM, 0, "UNIX-STREAM"),
            (socket.AF_NETLINK, socket.SOCK_RAW, 0, "NETLINK"),
        ):
            found = stack.enter_context(socket.socket(family, kind, protocol))
            expected[found.fileno()] = name
        epoll = stack.enter_context(select.epoll())
        expected[epoll.fileno()] = "eventpoll"
        watch = libc.inotify_init1(0)
        stack.callback(os.close, watch)
        expected[watch] = "inotify"
        marks = os.open("/proc/self/clear_refs", os.O_WRONLY)
        stack.callback(os.close, marks)
        expected[marks] = f"/proc/{os.getpid()}/clear_refs"
        null = stack.enter_context(open("/dev/null", "rb"))
        expected[null.fileno()] = "/dev/null"
        yield expected


def test_descriptors_are_told_apart(opened: dict[int, str]) -> None:
    found = view._process(os.getpid())
    assert found is not None
    assert found.state == "R"
    assert found.parent == os.getppid()
    assert set(view.NAMESPACES) - {"time"} <= set(found.namespaces)
    named = {one.fd: one for one in found.files}
    assert {fd: named[fd].name for fd in opened} == opened
    assert all(named[fd].inode for fd, name in opened.items() if named[fd].kind == "socket")
    [null] = [one for one in found.files if one.fd >= 0 and opened.get(one.fd) == "/dev/null"]
    assert null == OpenFile(null.fd, "char", "/dev/null", (1, 3))


def test_plain_files_and_pipes_are_not_listed() -> None:
    reader, writer = os.pipe()
    with open(__file__) as plain:
        found = view._process(os.getpid())
        os.close(reader)
        os.close(writer)
        assert found is not None
        assert not {reader, writer, plain.fileno()} & {one.fd for one in found.files}


def test_a_process_that_has_ended_is_left_out() -> None:
    assert view._process(2**22 + 1) is None
