"""What is done in a container's network namespace by this process, where a command would take too long."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from agent.base.errors import CommandFailed
from agent.base.shell import Shell
from agent.network import identity, lock, nft, sockets
from agent.network.namespace import in_netns, within

ADDRESSES = ["10.9.8.7/24", "fd09::7/64"]


@pytest.fixture
def pid() -> Iterator[int]:
    """A process in a network namespace of its own."""
    command = ["unshare", "--net", "sh", "-c", "echo; read -r end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


async def told(*argv: str) -> str:
    return (await Shell().run(*argv)).stdout


async def test_it_locks_and_unlocks_there_and_nowhere_else(pid: int, caplog: pytest.LogCaptureFixture) -> None:
    assert nft.is_there()
    shell = Shell()
    with caplog.at_level(logging.DEBUG, "agent.wire"):
        await lock.shut_gate(shell, pid)
        await lock.lock(shell, pid)
    assert await lock.is_locked(shell, pid)
    assert f"+ nsenter --net=/proc/{pid}/ns/net nft -f - <<'END'\n" in caplog.text, "as it would be typed"
    assert lock.TABLE not in await told("nft", "list", "tables")
    await lock.unlock(shell, pid)
    assert not await lock.is_locked(shell, pid)
    await lock.unlock(shell, pid)


async def test_the_namespace_is_let_go_afterwards(pid: int) -> None:
    def sockets() -> int:
        return sum("socket:" in target(fd) for fd in os.listdir("/proc/self/fd"))

    def target(fd: str) -> str:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, by another thread or as that of the listing
            return os.readlink(f"/proc/self/fd/{fd}")
        return ""

    before = sockets()
    for _ in range(5):
        await lock.lock(Shell(), pid)
    async with asyncio.timeout(10 * nft.FREE_AFTER_SECONDS):
        while sockets() > before:
            await asyncio.sleep(0.05)


async def test_what_nft_would_say_is_the_error(pid: int) -> None:
    with pytest.raises(CommandFailed) as failed:
        await asyncio.to_thread(nft.apply, pid, "add table inet one\nadd rule inet none in drop\n")
    assert "No such file or directory" in str(failed.value)
    assert await told(*in_netns(pid, "nft", "list", "tables")) == "", "all of it or nothing"


async def test_a_process_that_is_gone() -> None:
    with pytest.raises(CommandFailed):
        await asyncio.to_thread(nft.apply, 2**22 + 1, lock.UNLOCK)
    await identity.take_down_stand_in(Shell(), 2**22 + 1, ADDRESSES)


async def test_addresses_that_stand_in_on_lo_are_taken_off_it(pid: int) -> None:
    shell = Shell()
    before = await told(*in_netns(pid, "ip", "address"))
    await shell.run(*in_netns(pid, "ip", "-batch", "-"), stdin=identity.stand_in(ADDRESSES).encode())
    stand = await told(*in_netns(pid, "ip", "address"))
    assert "10.9.8.7/32" in stand
    assert "fd09::7/128" in stand
    await identity.take_down_stand_in(shell, pid, [*ADDRESSES, "10.0.0.1"])
    left = await told(*in_netns(pid, "ip", "address"))
    assert "10.9.8.7" not in left
    assert "fd09::7" not in left
    assert "lo:" in before
    for version in ("-4", "-6"):
        assert "default" not in await told(*in_netns(pid, "ip", version, "route", "show", "table", "all"))


async def test_a_connection_is_seen_while_there_is_one(pid: int) -> None:
    await told(*in_netns(pid, "ip", "link", "set", "lo", "up"))
    assert not sockets.connected(pid)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(within(pid, lambda: socket.create_server(("127.0.0.1", 0))))
        assert not sockets.connected(pid), "it only listens"
        stack.enter_context(within(pid, lambda: socket.create_connection(server.getsockname())))
        assert sockets.connected(pid)
