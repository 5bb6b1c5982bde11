"""Post-copy: the container runs at the target before its memory is there, and all of that follows."""

import pytest

from lab.cluster import Cluster
from lab.workloads import COUNTER, STACK_AT_PAGE, has_stack_at_page, run_counter
from protocol.commands import ReplyKind
from protocol.errors import ErrorCode
from protocol.status import Phase
from tests.e2e.archives import policy, state
from tests.e2e.keeper import arrives, keeper, names, remembers, running, until_it_follows
from tests.e2e.support import clean, counts_on, until

A, B = "a28", "b26"
PAIRS = [("a28", "b28"), ("b28", "a26"), ("a26", "b26"), ("b26", "c28")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_a_container_counts_on_while_its_memory_follows(moves: Cluster, source: str, target: str) -> None:
    name = f"lazy-{source}-{target}"

    async def start() -> None:
        run_counter(moves[source], name, mib=128)
        await counts_on(moves[source], name)

    try:
        await until_it_follows(moves[source], name, start)
        reply = await moves.migrate(name, source, target, strategy="postcopy")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert reply.report is not None
        assert reply.report.strategy == "postcopy"
        assert sum(part.bytes for part in reply.report.parts if part.frozen and part.name == "images") < 16 << 20
        assert sum(part.bytes for part in reply.report.parts if part.name == "pages") > 100 << 20
        assert not [note for note in reply.report.notes if "for a stack" in note]
        await counts_on(moves[target], name)
        await clean(moves, source, target)
    finally:
        for host in (source, target):
            moves[host].docker("rm", "--force", name, check=False)


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_every_byte_is_what_it_was_while_it_is_there_and_back_again(
    moves: Cluster, source: str, target: str
) -> None:
    name = "there-and-back"
    async with keeper(moves, name, "--restart", "always", source=source, others=(target,), mib=64) as digest:
        for here, there in ((source, target), (target, source)):
            reply = await moves.migrate(name, here, there, strategy="postcopy")
            assert reply.kind is ReplyKind.FINISHED, reply.error
            await remembers(moves[there], name, digest)
            assert name not in names(moves[here])
            assert policy(moves[there], name) == "always"
            await clean(moves, source, target)


async def test_what_criu_takes_for_a_stack_comes_in_the_blackout_and_that_is_said(moves: Cluster) -> None:
    name = "stacked"
    moves[A].ensure_image("py")
    program = STACK_AT_PAGE + COUNTER.format(mib=48, pause=0.005)
    moves[A].docker("run", "-d", "--name", name, "py", "python3", "-c", program)
    try:
        await counts_on(moves[A], name)
        assert has_stack_at_page(moves[A], name)
        reply = await moves.migrate(name, A, B, strategy="postcopy")
        assert reply.kind is ReplyKind.FINISHED, reply.error
        assert reply.report is not None
        assert sum(part.bytes for part in reply.report.parts if part.frozen and part.name == "images") > 48 << 20
        [note] = [note for note in reply.report.notes if "for a stack" in note]
        assert int(note.split()[0]) >= 48
        await counts_on(moves[B], name)
        await clean(moves, A, B)
    finally:
        for host in (A, B):
            moves[host].docker("rm", "--force", name, check=False)


async def test_the_sources_container_is_kept_until_the_last_page_is_across(moves: Cluster) -> None:
    name = "kept"
    async with (
        keeper(moves, name, "--restart", "always", source=A, others=(B,)) as digest,
        running(moves, name, A, B, rate="20mbit") as move,
    ):
        for host in (A, B):
            assert (state(moves[host], name), policy(moves[host], name)) == ("running", "no")
        await counts_on(moves[B], name, more=5)
        still = (state(moves[A], name), policy(moves[A], name))
        assert still == ("running", "no"), "most of its memory is still to come"
        await arrives(moves, move, name, A, B, digest)


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.FROZEN, Phase.PREPARED])
async def test_cancelled_before_the_decision_it_runs_on_at_the_source(moves: Cluster, phase: Phase) -> None:
    name = f"stays-{phase}"
    async with keeper(moves, name, source=A, others=(B,), mib=64) as digest:
        async with moves.moving(name, A, B, strategy="postcopy") as move:
            await move.until(phase, Phase.DONE)
            refused = (await move.cancel()).error
            end = await move.end()
        if refused is None:  # else it was decided by then
            assert end.error is not None
            assert end.error.code is ErrorCode.CANCELLED, end.error
        where, other = (A, B) if refused is None else (B, A)
        await remembers(moves[where], name, digest, taken_back=1 if refused is None else 0)
        assert name not in names(moves[other])
        await clean(moves, A, B)


@pytest.mark.parametrize("by", ["itself", "docker kill", "docker restart"])
async def test_a_program_that_ends_needs_no_more_of_its_memory(moves: Cluster, by: str) -> None:
    """It is started again if dockerd would have: when the move has ended, and not where a person has ended it."""
    name = "ends"
    async with keeper(moves, name, "--restart", "on-failure", source=A, others=(B,)):
        async with running(moves, name, A, B) as move:
            if by == "itself":
                moves[B].run(["kill", "-9", moves[B].docker("inspect", "-f", "{{.State.Pid}}", name)])
            else:
                moves[B].docker(by.split()[1], *(["--time", "0"] if by == "docker restart" else []), name)
            end = await move.end()
        assert end.kind is ReplyKind.FINISHED, end.error
        assert name not in names(moves[A])
        await until(lambda: policy(moves[B], name) == "on-failure", "the target has finished")
        await clean(moves, A, B)
        assert moves[B].docker("inspect", "-f", "{{.State.Running}}", name) == str(by != "docker kill").lower()
