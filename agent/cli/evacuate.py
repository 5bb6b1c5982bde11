"""`transship evacuate`, `return` and `cordon`: ask the hosts, show how far they are, and tell who stayed and why."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import cast

from agent.base.errors import AgentError, Refused, from_wire
from agent.cli.controller import Controller, checked
from agent.cli.leaving_view import View, show_plan, show_result, view
from agent.cli.listing import known
from agent.cli.output import FAILED, IN_DOUBT, OK, Out
from protocol.commands import Cordon, Evacuate, Reply, ReplyKind, Return
from protocol.errors import Consequence, ErrorCode
from protocol.evacuation import EvacuationState, EvacuationStatus, EvacueeState
from protocol.status import HostStatus, MigrationStatus

REPORTS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    host: str
    to: tuple[str, ...] = ()
    deadline: str | None = None
    parallel: int | None = None
    plan: bool = False
    detach: bool = False


async def evacuate(controller: Controller, out: Out, wanted: Wanted) -> int:
    """Empty a host."""
    await _online(controller, wanted.host)
    command = checked(
        Evacuate,
        to=wanted.to,
        deadline_s=seconds(wanted.deadline),
        parallel=wanted.parallel,
        plan=wanted.plan,
    )
    return await _carried_out(controller, out, wanted, [(wanted.host, command)])


async def give_back(controller: Controller, out: Out, wanted: Wanted) -> int:
    """Ask every host that has containers of this one to give them back."""
    home = await _online(controller, wanted.host)
    if home.cordoned and not wanted.plan:
        raise Refused(
            ErrorCode.HOST_CORDONED,
            f"{wanted.host} is cordoned: it takes nothing back",
            hint=f"`transship uncordon {wanted.host}` first",
        )
    online = {one.host for one in await controller.hosts() if one.online}
    away = [one for one in await controller.containers() if one.home == wanted.host]
    for one in away:
        if one.host not in online:
            out.warn(f"{one.name} is on {one.host}, which is offline: it can't be asked")
    holders = sorted({one.host for one in away} & online)
    if not holders:
        if out.as_json:
            out.item({"type": "result", "ok": True, "exit_code": OK, "evacuations": []})
        out.say(f"no container is away from {wanted.host}")
        return OK
    asked = [
        (
            holder,
            checked(
                Return,
                to=wanted.host,
                deadline_s=seconds(wanted.deadline),
                parallel=wanted.parallel,
                plan=wanted.plan,
            ),
        )
        for holder in holders
    ]
    return await _carried_out(controller, out, wanted, asked)


async def cordon(controller: Controller, out: Out, host: str, *, cordoned: bool) -> int:
    await _online(controller, host)
    await controller.ask(host, checked(Cordon, cordoned=cordoned))
    if out.as_json:
        out.item({"ok": True, "host": host, "cordoned": cordoned})
    out.say(f"{host} takes {'no containers any more; those that run there run on' if cordoned else 'containers again'}")
    return OK


def seconds(text: str | None) -> float | None:
    """`90s`, `5m`, `1h`; a number alone is seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", text.strip())
    if found is None or not float(found[1]):
        raise Refused(ErrorCode.BAD_COMMAND, f"{text!r} is no time", hint="like 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


async def _online(controller: Controller, host: str) -> HostStatus:
    hosts = {one.host: one for one in await controller.hosts()}
    if host not in hosts:
        raise Refused(ErrorCode.NO_SUCH_HOST, f"there is no host {host}", hint=known(hosts))
    if not hosts[host].online:
        raise Refused(ErrorCode.HOST_OFFLINE, f"{host} is offline", hint=known(hosts))
    return hosts[host]


async def _carried_out(
    controller: Controller, out: Out, wanted: Wanted, asked: Sequence[tuple[str, Evacuate | Return]]
) -> int:
    shown = view(out)
    begun: dict[str, str] = {}
    out.when_interrupted = lambda: _left(begun)
    try:
        ends = [_one(controller, out, shown, wanted, begun, host, command) for host, command in asked]
        results = await asyncio.gather(*ends, return_exceptions=True)
    finally:
        shown.close()
    errors = [one for one in results if isinstance(one, BaseException)]
    statuses = [one for one in results if isinstance(one, EvacuationStatus)]
    if errors and not statuses:
        raise errors[0]
    code = max([code_of(one) for one in statuses], default=OK)
    for error in errors:
        if not isinstance(error, AgentError):
            raise error
        code = max(code, out.error(error.info()))
    if wanted.detach:
        return code
    if wanted.plan:
        show_plan(out, statuses)
    else:
        show_result(out, statuses, shown.reports())
    if out.as_json:
        told = [one.model_dump(mode="json") for one in statuses]
        out.item(
            {"type": "plan" if wanted.plan else "result", "ok": code == OK, "exit_code": code, "evacuations": told}
        )
    return code


def _left(begun: dict[str, str]) -> dict[str, str]:
    """What Ctrl-C leaves behind."""
    lines = [f"{host} is still at it.\n  transship cancel {name}  ends that" for name, host in begun.items()]
    return {"evacuations": ", ".join(begun), "message": "\n".join(lines)} if begun else {}


async def _one(
    controller: Controller,
    out: Out,
    shown: View,
    wanted: Wanted,
    begun: dict[str, str],
    host: str,
    command: Evacuate | Return,
) -> EvacuationStatus | None:
    """Ask one host, and watch it to its end."""
    replies = cast("AsyncGenerator[Reply]", controller.command(host, command))
    async with aclosing(replies):
        first = await anext(replies)
        if first.error is not None:
            raise from_wire(first.error)
        if wanted.plan:
            return _told(first if first.evacuation else await anext(replies))
        if first.kind is ReplyKind.FINISHED and first.evacuation is not None:
            return first.evacuation
        status = first.evacuation
        evacuation = status.id if status else ""
        begun[evacuation] = host
        if wanted.detach:
            out.say(f"{evacuation}: {host} is at it; `transship cancel {evacuation}` ends that")
            if out.as_json:
                out.item({"type": "accepted", "evacuation": evacuation, "host": host})
            return status
        shown.begun(host, evacuation)
        return await _watched(controller, shown, host, evacuation, replies)


def _told(reply: Reply) -> EvacuationStatus:
    if reply.error is not None:
        raise from_wire(reply.error)
    assert reply.evacuation is not None
    return reply.evacuation


async def _watched(
    controller: Controller, shown: View, host: str, evacuation: str, replies: AsyncGenerator[Reply]
) -> EvacuationStatus:
    """Whichever tells the end: the retained status, or the last reply; a restarted agent has the first alone."""
    moves = asyncio.create_task(_moves(controller, shown, host), name=f"moves of {host}")
    reply = asyncio.ensure_future(anext(replies))
    statuses = cast("AsyncGenerator[EvacuationStatus]", controller.watch_evacuation(host, evacuation))
    status = asyncio.ensure_future(anext(statuses))
    try:
        while True:
            await asyncio.wait({reply, status}, return_when=asyncio.FIRST_COMPLETED)
            if status.done():
                last = status.result()
                shown.changed(last)
                if last.state is not EvacuationState.RUNNING:
                    return await _with_reports(shown, last)
                status = asyncio.ensure_future(anext(statuses))
            if reply.done():
                last = _told(reply.result())
                shown.changed(last)
                return await _with_reports(shown, last)
    finally:
        for task in (moves, reply, status):
            task.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, AgentError):
                await task
        await statuses.aclose()


async def _with_reports(shown: View, last: EvacuationStatus) -> EvacuationStatus:
    """The last word on each move comes on another topic, a moment before or after."""
    end = asyncio.get_running_loop().time() + REPORTS_SECONDS
    while shown.waits(last) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(REPORTS_SECONDS / 20)
    return last


async def _moves(controller: Controller, shown: View, host: str) -> None:
    moves = cast("AsyncGenerator[MigrationStatus]", controller.watch_moves(host))
    async with aclosing(moves):
        async for status in moves:
            shown.moving(status)


def code_of(status: EvacuationStatus) -> int:
    """What it means for a script."""
    left = [one for one in status.containers if one.state in (EvacueeState.LEFT, EvacueeState.MOVING)]
    grave = (Consequence.IN_DOUBT, Consequence.STRANDED)
    if any(one.state is EvacueeState.MOVING or (one.error and one.error.consequence in grave) for one in left):
        return IN_DOUBT if status.state is not EvacuationState.RUNNING else OK
    return FAILED if left or status.error is not None else OK
