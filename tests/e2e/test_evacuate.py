"""A host is emptied by one command, and filled again: who goes where, who stays and why; and nothing twice."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import pytest

from agent.base.errors import AgentError
from lab.cluster import TRANSSHIP, Cluster
from lab.shell import PATIENCE
from lab.workloads import run_counter
from protocol.base import new_command_id
from protocol.commands import CancelEvacuation, Command, Cordon, Evacuate, ReplyKind
from protocol.errors import ErrorCode
from protocol.evacuation import EvacuationState, EvacuationStatus, EvacueeState
from protocol.status import MigrationStatus, Phase
from tests.e2e.archives import environment
from tests.e2e.support import clean, counts_on

A, B, C = "a28", "b28", "c26"
CROWD = [f"box{number}" for number in range(5)]
SMALL = 4


def running(three: Cluster, host: str) -> set[str]:
    return set(three[host].docker("ps", "--format", "{{.Names}}").split())


def remove_all(three: Cluster) -> None:
    for host in (A, B, C):
        if ids := three[host].docker("ps", "--all", "--quiet").split():
            three[host].docker("rm", "--force", *ids)


async def evacuated(three: Cluster, command: Command, host: str = A) -> EvacuationStatus:
    reply = await three.ask(host, command)
    assert reply.kind is ReplyKind.FINISHED, reply.error
    assert reply.evacuation is not None
    return reply.evacuation


@asynccontextmanager
async def uncordoned(three: Cluster) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for host in (A, B, C):
            await three.ask(host, Cordon(id=new_command_id(), cordoned=False))
        await asyncio.to_thread(remove_all, three)


def transship(three: Cluster, *words: str, host: str = B) -> tuple[int, list[dict[str, Any]], str]:
    """The command line on a host, as a controller."""
    done = three[host].run([TRANSSHIP, *words], check=False, timeout=120, env=environment(three))
    found = []
    for line in done.stdout.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return done.returncode, found, done.stdout


async def test_a_host_is_emptied_and_filled_again(three: Cluster) -> None:
    async with uncordoned(three):
        host = three[A]
        for name in CROWD:
            run_counter(host, name, mib=SMALL, pause=0.02)
        run_counter(host, "pinned", "--label", f"transship.targets=nowhere,{C}", mib=SMALL, pause=0.02)
        run_counter(host, "dear", "--label", "transship.priority=5", mib=4 * SMALL, pause=0.02)
        run_counter(host, "stays", "--label", "transship.evacuate=no", mib=SMALL, pause=0.02)
        host.docker("run", "-dt", "--name", "tty", "py", "python3", "-c", "import time; time.sleep(10**6)")

        code, [plan], _ = await asyncio.to_thread(transship, three, "evacuate", A, "--plan", "--json")
        assert (code, plan["type"], plan["ok"]) == (1, "plan", False)  # the terminal stays behind
        rows = {one["container"]: one for one in plan["evacuations"][0]["containers"]}
        assert plan["evacuations"][0]["containers"][0]["container"] == "dear"
        assert rows["pinned"]["to"] == C
        assert "names only nowhere" in str(rows["pinned"]["not_there"])
        assert rows["tty"]["error"]["code"] == "not-migratable"
        assert {rows[name]["to"] for name in CROWD} <= {B, C}
        assert all(rows[name]["why"] and rows[name]["not_there"] for name in CROWD)
        assert len(running(three, A)) == 9
        assert not await cordoned(three, A)

        code, lines, _ = await asyncio.to_thread(transship, three, "evacuate", A, "--parallel", "4", "--json")
        result = lines[-1]
        rows = {one["container"]: one for one in result["evacuations"][0]["containers"]}
        assert (code, result["type"]) == (1, "result")
        assert rows["tty"]["state"] == "left"
        assert "terminal" in rows["tty"]["error"]["message"]
        assert rows["stays"]["state"] == "stays"
        moved = [*CROWD, "pinned", "dear"]
        assert {name: rows[name]["state"] for name in moved} == dict.fromkeys(moved, "moved"), rows
        assert rows["pinned"]["to"] == C
        begun = [one["container"] for one in lines if one["type"] == "container" and one["state"] == "moving"]
        assert begun[0] == "dear"
        assert running(three, A) == {"tty", "stays"}
        assert sorted(running(three, B) | running(three, C)) == sorted(moved)
        assert not running(three, B) & running(three, C)
        for name in ("dear", "pinned", CROWD[0]):
            await counts_on(three[rows[name]["to"]], name)

        # cordoned: nothing comes, and it survives a restart of the agent
        assert await cordoned(three, A)
        await asyncio.to_thread(three[A].kill_agent)
        three[A].start_agent()
        await three.until_ready()
        await until_cordoned(three, A)
        there = rows["dear"]["to"]
        refused = await three.migrate("dear", there, A)
        assert refused.error is not None
        assert refused.error.code is ErrorCode.HOST_CORDONED
        code, lines, _ = await asyncio.to_thread(transship, three, "return", A, "--json")
        assert (code, lines[0]["error"]["code"]) == (2, "host-cordoned")

        code, _, said = await asyncio.to_thread(transship, three, "uncordon", A)
        assert code == 0, said
        assert not await cordoned(three, A)

        # home: all that were evacuated, but for what a person has moved on meanwhile
        other = C if there == B else B
        assert (await three.migrate("dear", there, other)).kind is ReplyKind.FINISHED
        code, lines, said = await asyncio.to_thread(transship, three, "return", A, "--json")
        assert code == 0, said
        assert running(three, A) == {"tty", "stays", "pinned", *CROWD}
        assert "dear" in running(three, other)
        for name in (CROWD[0], "pinned"):
            await counts_on(three[A], name)
        code, lines, _ = await asyncio.to_thread(transship, three, "return", A, "--json")
        assert (code, lines[0]["evacuations"]) == (0, [])
        await clean(three, A, B, C)


async def cordoned(three: Cluster, host: str) -> bool:
    async with three.controller() as controller:
        return next(one.cordoned for one in await controller.hosts() if one.host == host)


async def until_cordoned(three: Cluster, host: str) -> None:
    async with asyncio.timeout(20), three.controller() as controller:
        while not next(one.cordoned for one in await controller.hosts() if one.host == host):
            await asyncio.sleep(0.1)


async def test_too_short_a_deadline_moves_some_and_leaves_the_others_running(three: Cluster) -> None:
    async with uncordoned(three):
        for name in (*CROWD, "late"):
            run_counter(three[A], name, mib=SMALL, pause=0.02)
        await counts_on(three[A], "late", 5)
        command = Evacuate(id=new_command_id(), deadline_s=6 * PATIENCE, parallel=1)
        status = await evacuated(three, command)
        assert status.state is EvacuationState.DONE
        moved = {one.container for one in status.containers if one.state is EvacueeState.MOVED}
        left = {one.container: one for one in status.containers if one.state is EvacueeState.LEFT}
        assert moved
        assert left
        assert {one.error.code for one in left.values() if one.error} == {ErrorCode.TOO_LITTLE_TIME}
        assert running(three, A) == set(left)
        for name in left:
            await counts_on(three[A], name, 5, taken_back=1)
        # sent twice it is done once, and gets the same answer
        again = await evacuated(three, command)
        assert again == status
        assert running(three, A) == set(left)
        await clean(three, A, B, C)


async def test_cancelled_it_takes_back_what_it_can_and_begins_nothing_more(three: Cluster) -> None:
    async with uncordoned(three):
        for name in CROWD[:4]:
            run_counter(three[A], name, mib=SMALL, pause=0.02)
        async with asyncio.timeout(60), three.controller() as controller:
            command = Evacuate(id=new_command_id(), parallel=1)
            replies = controller.command(A, command)
            first = await anext(replies)
            assert first.evacuation is not None
            async for status in controller.watch_evacuation(A, first.evacuation.id):
                if any(one.state is EvacueeState.MOVING for one in status.containers):
                    break
            with pytest.raises(AgentError) as busy:
                await controller.ask(A, Evacuate(id=new_command_id()))
            assert busy.value.code is ErrorCode.BUSY
            await controller.ask(A, CancelEvacuation(id=new_command_id(), evacuation=first.evacuation.id))
            last = await anext(replies)
        assert last.evacuation is not None
        assert last.evacuation.state is EvacuationState.CANCELLED
        left = {one.container for one in last.evacuation.containers if one.state is EvacueeState.LEFT}
        assert len(left) >= 3
        assert running(three, A) == left
        for name in left:
            await counts_on(three[A], name, 5, taken_back=1)
        assert await cordoned(three, A)
        await clean(three, A, B, C)


async def test_an_agent_killed_in_the_middle_goes_on_when_it_is_back(three: Cluster) -> None:
    async with uncordoned(three):
        for name in CROWD[:4]:
            run_counter(three[A], name, mib=SMALL, pause=0.02)
        async with asyncio.timeout(90), three.controller() as controller:
            command = Evacuate(id=new_command_id(), parallel=2)
            first = await controller.ask(A, command)
            assert first.evacuation is not None
            evacuation = first.evacuation.id
            moves = cast("AsyncGenerator[MigrationStatus]", controller.watch_moves(A))
            async with aclosing(moves):
                async for move in moves:
                    if move.phase is Phase.FROZEN and move.started_at > first.at:
                        break
            await asyncio.to_thread(three[A].kill_agent)
            three[A].start_agent()
            async for status in controller.watch_evacuation(A, evacuation):
                last = status
        assert last.state is EvacuationState.DONE
        assert {one.state for one in last.containers} == {EvacueeState.MOVED}, last
        assert running(three, A) == set()
        assert sorted(running(three, B) | running(three, C)) == CROWD[:4]
        assert not running(three, B) & running(three, C)
        for one in last.containers:
            assert one.to is not None
            await counts_on(three[one.to], one.container, 5, taken_back=1)
        again = await evacuated(three, command)
        assert (again.id, again.state) == (evacuation, EvacuationState.DONE)
        await clean(three, A, B, C)
