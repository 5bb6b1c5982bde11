"""A limit of what a move sends while its container runs, changed while it goes on."""

from datetime import timedelta

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from protocol.commands import Limit, ReplyKind
from protocol.status import ENDED, Phase
from tests.e2e.keeper import keeper, names, remembers
from tests.e2e.support import clean, counts_on, done

A, B = "a26", "b28"
SLOW = 2 << 20
BURST = timedelta(seconds=2)
"""Until what was sent in the blackout is in no rate any more: there nothing keeps to a limit."""


@pytest.mark.parametrize("whose", ["its own", "the host's"])
async def test_a_move_keeps_to_a_limit_until_that_is_lifted(moves: Cluster, whose: str) -> None:
    """192 MiB at 2 MiB a second would take more than a minute, but for what the blackout carries over a link of 12."""
    name = "paced"
    async with keeper(moves, name, source=A, others=(B,)) as digest:
        moves.lab.slow(B, "100mbit")
        own = {"bandwidth": SLOW} if whose == "its own" else {}
        if not own:
            await done(moves, A, Limit, migration=None, bandwidth=SLOW)
        try:
            async with moves.moving(name, A, B, strategy="postcopy", **own) as move:
                status = await move.until(Phase.RUNNING, *ENDED)
                assert status.phase is Phase.RUNNING
                assert status.bandwidth == (SLOW if own else None)
                async for now in move.changes():
                    if now.phase is not Phase.RUNNING or now.at > status.at + BURST:
                        break
                assert now.phase is Phase.RUNNING
                assert now.rate < 2 * SLOW
                assert now.bytes_total is not None
                assert now.bytes_total > 192 << 20
                assert now.eta_s is not None
                assert now.eta_s > 10, "at this rate the rest takes a minute"
                assert name in names(moves[A])
                await done(moves, A, Limit, migration=move.id if own else None, bandwidth=None)
                moves.lab.heal(B)
                end = await move.end()
        finally:
            moves.lab.heal(B)
            await done(moves, A, Limit, migration=None, bandwidth=None)
        assert end.kind is ReplyKind.FINISHED, end.error
        assert end.report is not None
        assert end.report.blackout_ms is not None
        assert end.report.total_ms < 40_000
        await remembers(moves[B], name, digest)
        await clean(moves, A, B)


@pytest.mark.parametrize("compress", ["auto", "none"])
async def test_what_compresses_well_is_compressed_for_a_slow_link(moves: Cluster, compress: str) -> None:
    """The counter's memory is nearly all zeros."""
    name = "compressed"
    run_counter(moves[A], name, mib=32)
    try:
        await counts_on(moves[A], name)
        moves.lab.slow(B, "200mbit")
        moved = await moves.migrate(name, A, B, strategy="cold", compress=compress)
        moves.lab.heal(B)
        assert moved.error is None
        assert moved.report is not None
        assert moved.report.frozen_memory_bytes > 32 << 20
        if compress == "auto":
            assert moved.report.compression.startswith("zstd: a sample compresses")
            assert moved.report.wire_bytes < moved.report.frozen_memory_bytes / 4
        else:
            assert moved.report.compression == "not compressed, as asked"
            assert moved.report.wire_bytes > moved.report.frozen_memory_bytes
        await counts_on(moves[B], name)
    finally:
        moves.lab.heal(B)
        for host in (A, B):
            moves[host].docker("rm", "-f", name, check=False)
    await clean(moves, A, B)
