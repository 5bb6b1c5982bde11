"""A migration in doubt is a person's: it is listed, what each answer risks is said first, and then it is done."""

import json
from typing import Any

from lab.cluster import TRANSSHIP, Cluster, Moving
from lab.shell import Completed
from lab.workloads import Counted, run_counter
from protocol.status import Phase
from tests.e2e.archives import controller
from tests.e2e.support import clean, counts_on

A, B = "a26", "b28"
ATTEMPTS = 6
AFTERWARDS = (Phase.COMMITTED, Phase.RUNNING, Phase.DONE, Phase.ROLLED_BACK)


def transship(moves: Cluster, *words: str) -> Completed:
    return moves[A].run([TRANSSHIP, *words], env=controller(moves), check=False, timeout=120)


def listed(moves: Cluster, migration: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in transship(moves, "migrations", "--json").stdout.splitlines()]
    return next((row for row in rows if row.get("id") == migration), {})


async def in_doubt(moves: Cluster, name: str, policy: str) -> tuple[str, Counted]:
    """Take the target's power away when its copy is proved, until that was just between decision and confirmation.

    The migration, and what its container had counted before.
    """
    for _ in range(ATTEMPTS):
        run_counter(moves[A], name, "--restart", policy)
        before = await counts_on(moves[A], name)
        async with moves.moving(name, A, B) as move:
            await move.until(Phase.PREPARED, *AFTERWARDS)
            moves[B].kill()
            if await decided_or_over(move) is Phase.COMMITTED:
                return move.id, before
        await up_again(moves, name)
    raise AssertionError(f"in {ATTEMPTS} moves the power never went at the right moment")


async def decided_or_over(move: Moving) -> Phase:
    async for status in move.changes():
        if status.phase in (Phase.DONE, Phase.ROLLED_BACK) or (status.phase is Phase.COMMITTED and status.error):
            return status.phase
    return Phase.ROLLED_BACK


async def test_a_person_takes_back_what_a_target_that_is_gone_can_not_run(moves: Cluster) -> None:
    name = "in-doubt"
    try:
        migration, before = await in_doubt(moves, name, "always")
        assert "has not confirmed" in listed(moves, migration)["doubt"]
        asked = transship(moves, "resolve", migration, "--abort")
        assert asked.returncode != 0, "nobody has confirmed it"
        assert "What this risks: in-doubt runs on here" in " ".join((asked.stdout + asked.stderr).split())
        assert listed(moves, migration)["phase"] == Phase.COMMITTED
        told = transship(moves, "resolve", migration, "--abort", "--yes")
        assert told.returncode == 0, told.stderr
        now = await counts_on(moves[A], name, taken_back=1)
        assert now.written[: len(before.written)] == before.written, "the same one goes on"
        moves[B].start()
        moves[B].start_agent()
        await moves.until_ready()
        await clean(moves, A, B, seconds=60)
        assert name not in moves[B].docker("ps", "--all", "--format", "{{.Names}}").split()
        late = transship(moves, "resolve", migration, "--commit", "--yes")
        assert late.returncode != 0, "it has ended"
    finally:
        await up_again(moves, name)


async def up_again(moves: Cluster, name: str) -> None:
    if not moves[B].node.running():
        moves[B].start()
    if not moves[B].agent.running():
        moves[B].start_agent()
    await moves.until_ready()
    for host in (A, B):
        moves[host].docker("rm", "--force", name, check=False)
