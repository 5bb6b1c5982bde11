"""`auto` takes what keeps to the blackout that is wanted, over the link that there is."""

from pathlib import Path

import pytest

from agent.checkpoint import dirty
from lab.cluster import Cluster
from lab.workloads import run_counter
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from tests.e2e.keeper import until_it_follows
from tests.e2e.support import clean, counts_on

A, B = "a28", "b28"
MARKS = bool(dirty.written_bytes(Path("/proc/self")))


@pytest.mark.skipif(MARKS, reason="this kernel marks written memory: pre-copy can be had")
async def test_pre_copy_is_refused_where_the_kernel_marks_nothing(moves: Cluster) -> None:
    name = "unmarked"
    run_counter(moves[A], name)
    try:
        await counts_on(moves[A], name)
        reply = await moves.migrate(name, A, B, strategy="precopy")
        assert reply.error is not None
        assert reply.error.code is ErrorCode.INCOMPATIBLE, reply.error
        assert reply.error.consequence is Consequence.UNTOUCHED
        assert "mem_dirty_track" in reply.error.message
        assert "--strategy cold" in reply.error.hint
        await counts_on(moves[A], name)
        await clean(moves, A, B)
    finally:
        moves[A].docker("rm", "--force", name, check=False)


async def test_on_a_slow_link_only_post_copy_keeps_to_it_and_only_where_it_may(moves: Cluster) -> None:
    name = "choosy"

    async def start() -> None:
        run_counter(moves[A], name, mib=96)
        await counts_on(moves[A], name)

    try:
        await until_it_follows(moves[A], name, start)
        moves.lab.slow(B, "200mbit")
        refused = await moves.migrate(name, A, B, max_blackout_ms=3000, compress="none")
        assert refused.error is not None
        assert refused.error.code is ErrorCode.BLACKOUT_TOO_LONG, refused.error
        assert refused.error.consequence is Consequence.UNTOUCHED
        assert "--allow-postcopy" in refused.error.hint
        assert ("pre-copy can't be had" in refused.error.hint) is not MARKS
        reply = await moves.migrate(name, A, B, max_blackout_ms=3000, allow_postcopy=True, compress="none")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert reply.report is not None
        assert reply.report.strategy == "postcopy", reply.report.reason
        assert "cold would take" in reply.report.reason
        assert reply.report.predicted_blackout_ms is not None
        moves.lab.heal(B)
        back = await moves.migrate(name, B, A)
        assert back.report is not None
        assert back.report.strategy == "cold"
        assert "the safest" in back.report.reason
        await counts_on(moves[A], name)
        await clean(moves, A, B)
    finally:
        moves.lab.heal(B)
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)
