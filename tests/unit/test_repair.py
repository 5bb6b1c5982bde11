"""A TCP connection that was left in repair: another process's, by the kernel's own sockets."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.checkpoint import repair

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may put a connection into repair")

PROGRAM = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := connection.recv(100):
    connection.sendall(data)
"""
SECONDS = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[int, socket.socket]]:
    """A process that answers over its one connection, and the other end of that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [sys.executable, "-c", PROGRAM, str(server.getsockname()[1])]
        with subprocess.Popen(argv) as process:
            server.settimeout(SECONDS)
            other, _ = server.accept()
            with other:
                other.settimeout(SECONDS)
                yield process.pid, other
            process.kill()


def test_a_connection_in_repair_goes_on(ends: tuple[int, socket.socket]) -> None:
    pid, other = ends
    other.sendall(b"one")
    assert other.recv(3) == b"one"
    for found in repair.connections(pid):
        found.setsockopt(socket.IPPROTO_TCP, repair.TCP_REPAIR, 1)
    assert repair.give_back([pid]) == 1
    other.sendall(b"two")
    assert other.recv(3) == b"two"
    assert repair.give_back([pid]) == 0, "it has left it"


def test_without_it_the_program_can_not_read(ends: tuple[int, socket.socket]) -> None:
    pid, other = ends
    other.sendall(b"one")
    assert other.recv(3) == b"one"
    for found in repair.connections(pid):
        found.setsockopt(socket.IPPROTO_TCP, repair.TCP_REPAIR, 1)
    other.sendall(b"two")
    with pytest.raises(ConnectionResetError):  # it has ended of EPERM, with what came unread
        other.recv(3)


def test_what_is_no_connection_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        assert repair.give_back([os.getpid()]) == 0
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


def test_a_process_that_has_ended_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert repair.give_back([process.pid]) == 0
