"""A move fails, is cancelled, or its agent dies, while records are exchanged: none is missing, none comes twice."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from agent.checkpoint import repair
from lab.chaos import kernel
from lab.chaos.accidents import prey
from lab.chaos.loads import NAME as CONTAINER
from lab.chaos.loads import Load, Running
from lab.cluster import Cluster
from lab.host import Host
from lab.soak import Place, Streams, ensure_network
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.status import Phase
from tests.e2e.stream_support import remove
from tests.e2e.support import WAIT_SECONDS, clean, until
from tests.e2e.test_failures import A, B, dump_fails, restore_fails

NAME = "held"


@asynccontextmanager
async def streaming(moves: Cluster, folder: Path) -> AsyncIterator[Streams]:
    """Records flow before, and afterwards; then each side counts."""
    for host in (A, B):
        ensure_network(moves[host])
    streams = Streams(moves, NAME, Place(160), folder)
    try:
        streams.start(A)
        await streams.flowing()
        yield streams
        await streams.flowing()
        for kind, found in streams.end().items():
            assert found["ok"], (kind, found)
        await clean(moves, A, B)
    finally:
        streams.close()
        remove(moves, NAME)


@pytest.mark.parametrize("breaking", [dump_fails, restore_fails])
async def test_no_record_is_lost_when_a_step_fails(
    moves: Cluster, tmp_path: Path, breaking: Callable[[Cluster], AbstractContextManager[None]]
) -> None:
    async with streaming(moves, tmp_path) as streams:
        with breaking(moves):
            reply = await moves.migrate(NAME, A, B)
        assert reply.error is not None
        assert reply.error.consequence is Consequence.TAKEN_BACK
        await streams.flowing()
        again = await moves.migrate(NAME, A, B)
        assert again.kind is ReplyKind.FINISHED, again.error


async def test_a_connection_goes_on_that_a_killed_criu_had_in_its_hand(moves: Cluster) -> None:
    container = Running(moves.lab, Load.RECORDS, 61)
    try:
        container.start(moves[A])
        await answered(container)
        with container.client_silent():  # what came while it is frozen would be read, with EPERM, before anybody helps
            killing = asyncio.create_task(asyncio.to_thread(kill_criu_in_the_middle, moves[A], CONTAINER))
            reply = await moves.migrate(CONTAINER, A, B)
            assert await killing > 0
        assert reply.error is not None
        assert reply.error.code is ErrorCode.DUMP_FAILED
        assert reply.error.consequence is Consequence.TAKEN_BACK
        await answered(container)
        again = await moves.migrate(CONTAINER, A, B)
        assert again.kind is ReplyKind.FINISHED, again.error
        await answered(container)
        await clean(moves, A, B)
    finally:
        await asyncio.to_thread(container.remove)


async def answered(container: Running, more: int = 20) -> None:
    """So many records more are acknowledged over the one connection, none missing and none twice."""
    base = int(str(container.client_state().get("acknowledged", 0)))

    def look() -> bool:
        state = container.client_state()
        assert "wrong" not in state, state
        return int(str(state.get("acknowledged", 0))) >= base + more

    await until(look, f"records are acknowledged beyond {base}")


def kill_criu_in_the_middle(host: Host, name: str) -> int:
    """Kill CRIU there as soon as it has connections of a container in repair; how many those are."""
    container = host.docker("inspect", "--format", "{{.Id}}", name).strip()
    places = (kernel.freezer_folder(host) or Path("/nowhere")).rglob(f"*{container}*/cgroup.procs")
    pids = [int(line) for place in places for line in place.read_text().split()]
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        for connection in (found for pid in pids for found in repair.connections(pid)):
            if connection.getsockopt(socket.IPPROTO_TCP, repair.TCP_REPAIR):
                for criu in prey(host, ("criu",)):
                    criu.signal(signal.SIGKILL)
                return sum(
                    found.getsockopt(socket.IPPROTO_TCP, repair.TCP_REPAIR)
                    for pid in pids
                    for found in repair.connections(pid)
                )
    raise AssertionError(f"CRIU has put no connection of {pids} into repair")


async def test_no_record_is_lost_when_a_frozen_move_is_cancelled(moves: Cluster, tmp_path: Path) -> None:
    async with streaming(moves, tmp_path), moves.moving(NAME, A, B) as move:
        await move.until(Phase.FROZEN)
        await move.cancel()
        await move.end()


@pytest.mark.parametrize("phase", [Phase.FROZEN, Phase.PREPARED, Phase.COMMITTED])
@pytest.mark.parametrize("killed", [A, B])
async def test_no_record_is_lost_when_an_agent_dies(moves: Cluster, tmp_path: Path, killed: str, phase: Phase) -> None:
    async with streaming(moves, tmp_path):
        async with moves.moving(NAME, A, B) as move:
            await move.until(phase, Phase.DONE)
            moves[killed].kill_agent()
            moves[killed].start_agent()
        await moves.until_ready()
        await until(lambda: runs_somewhere(moves), "it runs once")


def runs_somewhere(moves: Cluster) -> bool:
    return sum(NAME in moves[host].docker("ps", "--format", "{{.Names}}").split() for host in (A, B)) == 1
