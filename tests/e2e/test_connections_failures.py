"""A move fails, is cancelled, or its agent dies, while records are exchanged: none is missing, none comes twice."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.soak import Place, Streams, ensure_network
from protocol.commands import ReplyKind
from protocol.errors import Consequence
from protocol.status import Phase
from tests.e2e.stream_support import remove
from tests.e2e.support import clean, until
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
