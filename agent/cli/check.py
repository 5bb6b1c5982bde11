"""`transship check`: would it move? Every reason against it, here and there, and how long it would be frozen."""

import asyncio
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from agent.base.errors import AgentError, Refused, from_wire
from agent.cli import finding
from agent.cli.controller import Controller, checked
from agent.cli.listing import known
from agent.cli.output import OK, REFUSED, Out, duration
from protocol.check import ContainerCheck, PeerCheck, Verdict
from protocol.commands import Check, Reply
from protocol.errors import ErrorCode, ErrorInfo, Reason
from protocol.status import HostStatus

AT_ONCE: Final = 4
"""Hosts that are asked."""
STYLES: Final = {Verdict.YES: "green", Verdict.COLD: "yellow", Verdict.NO: "red"}
SAYS: Final = {Verdict.YES: "yes", Verdict.COLD: "not by post-copy", Verdict.NO: "no"}


async def check(controller: Controller, out: Out, container: str | None, to: str | None, source: str | None) -> int:
    """0: each could be moved somewhere, or to where was asked; 2: one could not."""
    hosts = {one.host: one for one in await controller.hosts()}
    for name in filter(None, (to, source)):
        if name not in hosts:
            raise Refused(ErrorCode.NO_SUCH_HOST, f"there is no host {name}", hint=known(hosts))
    if container is not None:
        there = await controller.containers(source)
        found = finding.find(container, there, hosts)
        answers = [(found.host, await _ask(controller, found.host, checked(Check, container=found.id, to=to)))]
    else:
        answers = await _everywhere(controller, hosts, to, source)
    _show(out, answers)
    return OK if all(_moves(one) for _, reply in answers for one in reply) else REFUSED


async def _everywhere(
    controller: Controller, hosts: dict[str, HostStatus], to: str | None, source: str | None
) -> list[tuple[str, Sequence[ContainerCheck]]]:
    names = [name for name, one in sorted(hosts.items()) if one.online and name == (source or name) and name != to]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[str, Sequence[ContainerCheck]]:
        async with gate:
            return name, await _ask(controller, name, checked(Check, to=to))

    return list(await asyncio.gather(*map(one, names)))


async def _ask(controller: Controller, host: str, command: Check) -> Sequence[ContainerCheck]:
    last: Reply | None = None
    async for reply in controller.command(host, command):
        last = reply
    if last is None or last.error is not None:
        raise _failed(host, last.error if last is not None else None)
    return last.checks or ()


def _failed(host: str, error: ErrorInfo | None) -> AgentError:
    return from_wire(error) if error is not None else Refused(ErrorCode.INTERNAL, f"{host} has not said anything")


def _moves(one: ContainerCheck) -> bool:
    return any(peer.verdict is not Verdict.NO for peer in one.peers)


def _show(out: Out, answers: list[tuple[str, Sequence[ContainerCheck]]]) -> None:
    if out.as_json:
        for host, checks in answers:
            for one in checks:
                out.item(one, host=host, ok=_moves(one))
        return
    rows = [row for host, checks in answers for one in checks for row in _rows(host, one)]
    out.table(("HOST", "CONTAINER", "TO", "MOVES", "BLACKOUT", "WHY NOT"), rows, empty="no containers that run")


def _rows(host: str, one: ContainerCheck) -> list[tuple[str | Text, ...]]:
    name = Text(one.container, style="bold")
    rows: list[tuple[str | Text, ...]] = []
    if one.reasons:
        rows.append((host, name, "any host", Text("no", style="red"), "", _why(one.reasons)))
    for peer in one.peers:
        if one.reasons and not peer.reasons:
            continue  # it would take it, if that were not
        verdict = Text(SAYS[peer.verdict], style=STYLES[peer.verdict])
        rows.append((host, name, peer.host, verdict, _blackout(peer), _why(peer.reasons)))
    if not rows:
        rows.append((host, name, "", Text("no", style="red"), "", "no host may be given containers (peer.allow)"))
    rows += [("", "", "", "", "", Text(f"note: {note}", style="dim")) for note in one.notes]
    return rows


def _blackout(peer: PeerCheck) -> str:
    return "\n".join(f"{strategy} {duration(ms)}" for strategy, ms in peer.blackout_ms.items())


def _why(reasons: Sequence[Reason]) -> Text:
    said = Text()
    for number, reason in enumerate(reasons):
        said.append("\n" if number else "").append(f"{reason.name}: ", style="cyan").append(reason.message)
        if reason.hint:
            said.append(f"\n  {reason.hint}", style="dim")
    return said
