"""`transship migrate`: find the container, ask its host to move it, show how it goes, and tell how it ended."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import cast

from agent.base.errors import AgentError, Refused, from_wire
from agent.cli import finding
from agent.cli.commands import bytes_a_second
from agent.cli.controller import Controller, NoAnswer, checked
from agent.cli.listing import known
from agent.cli.output import FAILED, IN_DOUBT, OK, REFUSED, Out, duration, exit_code
from agent.cli.progress import View, view
from protocol.commands import Migrate, Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode, ErrorInfo
from protocol.status import ENDED, MigrationReport, MigrationStatus, Phase

LAST_REPLY_SECONDS = 3.0
"""The reply says more than the last status, and comes right behind it, if it comes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    container: str
    to: str
    source: str | None = None
    strategy: str = "auto"
    bandwidth: str = "none"
    compress: str = "auto"
    allow_postcopy: bool = False
    throttle: int = 0
    tcp: str = "auto"
    execs: str = "refuse"
    keep_source: bool = False
    max_blackout_ms: int | None = None
    rehearse: bool = False
    detach: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, as far as it was seen."""

    phase: Phase | None
    error: ErrorInfo | None
    report: MigrationReport | None

    @property
    def moved(self) -> bool:
        return self.error is None and self.phase is Phase.DONE

    @property
    def code(self) -> int:
        if self.error is not None:
            return exit_code(self.error)
        match self.phase:
            case Phase.DONE:
                return OK
            case Phase.REFUSED:
                return REFUSED
            case Phase.ROLLED_BACK:
                return FAILED
            case _:
                return IN_DOUBT


async def migrate(controller: Controller, out: Out, wanted: Wanted) -> int:
    out.moving = True
    source, name = await _source(controller, wanted)
    command = _command(wanted, name)
    shown = view(out)
    out.when_interrupted = lambda: {"message": f"{name} may be moving: `transship migrations` shows it"}
    try:
        shown.begun(name, source, wanted.to)
        replies = cast("AsyncGenerator[Reply]", controller.command(source, command))
        async with aclosing(replies):
            return await _follow(controller, out, shown, wanted, source, replies)
    finally:
        shown.close()


async def _source(controller: Controller, wanted: Wanted) -> tuple[str, str]:
    """The host to ask, and the container as it calls it."""
    hosts = {one.host: one for one in await controller.hosts()}
    if wanted.source is None:
        found = finding.find(wanted.container, await controller.containers(), hosts)
        return found.host, found.name
    if wanted.source not in hosts:
        raise Refused(ErrorCode.NO_SUCH_HOST, f"there is no host {wanted.source}", hint=known(hosts))
    if not hosts[wanted.source].online:
        raise Refused(ErrorCode.HOST_OFFLINE, f"{wanted.source} is offline", hint=known(hosts))
    return wanted.source, wanted.container


def _command(wanted: Wanted, name: str) -> Migrate:
    return checked(
        Migrate,
        container=name,
        to=wanted.to,
        strategy=wanted.strategy,
        tcp=wanted.tcp,
        execs=wanted.execs,
        source="keep" if wanted.keep_source else "remove",
        max_blackout_ms=wanted.max_blackout_ms,
        allow_postcopy=wanted.allow_postcopy,
        throttle=wanted.throttle,
        bandwidth=bytes_a_second(wanted.bandwidth),
        compress=wanted.compress,
        rehearse=wanted.rehearse,
    )


async def _follow(
    controller: Controller, out: Out, shown: View, wanted: Wanted, source: str, replies: AsyncIterator[Reply]
) -> int:
    first = await anext(replies)
    if first.error is not None:
        shown.close()
        raise from_wire(first.error)
    migration = first.migration
    if migration is None:
        raise Refused(ErrorCode.INTERNAL, f"{source} has taken the command, but named no migration")
    shown.accepted(migration)
    if wanted.detach:
        shown.close()
        out.say(f"{migration}: {wanted.container} is on its way; `transship migrations` shows it")
        return OK
    out.when_interrupted = lambda: {
        "migration": migration,
        "message": f"{wanted.container} is still being moved as {migration}.\n"
        f"  transship cancel {migration}  takes it back, until it is decided\n"
        f"  transship migrations{' ' * len(migration[3:])} shows how far it is",
    }
    try:
        async with asyncio.timeout(wanted.timeout):
            outcome = await _outcome(controller, shown, migration, source, first, replies)
    except TimeoutError:
        shown.close()
        raise NoAnswer(
            f"{migration} has not ended within {wanted.timeout:g} s; it goes on",
            hint=f"`transship migrations` shows how far it is, `transship cancel {migration}` takes it back",
        ) from None
    if wanted.rehearse and outcome.error is None and outcome.phase in (Phase.DONE, Phase.ROLLED_BACK):
        return _rehearsed(out, shown, migration, wanted, outcome.report)
    return _tell(out, shown, migration, outcome)


async def _outcome(
    controller: Controller, shown: View, migration: str, source: str, first: Reply, replies: AsyncIterator[Reply]
) -> Outcome:
    """Whichever tells the end: the last reply, or the retained status, should the reply be lost."""
    if first.kind is ReplyKind.FINISHED:
        return Outcome(Phase.DONE, None, first.report)
    last: MigrationStatus | None = None
    statuses = cast("AsyncGenerator[MigrationStatus]", controller.watch_migration(migration, source))
    reply = asyncio.ensure_future(anext(replies))
    status = asyncio.ensure_future(anext(statuses))
    try:
        while not reply.done() and (last is None or last.phase not in ENDED):
            await asyncio.wait({reply, status}, return_when=asyncio.FIRST_COMPLETED)
            if status.done():
                shown.changed(last := status.result())
                if last.phase not in ENDED:
                    status = asyncio.ensure_future(anext(statuses))
        await asyncio.wait({reply}, timeout=LAST_REPLY_SECONDS)
        if reply.done():
            answer = reply.result()
            report = answer.report or (last.report if last else None)
            return Outcome(_ended(answer.error, last), answer.error, report)
        assert last is not None
        return Outcome(last.phase, last.error, last.report)
    finally:
        for task in (reply, status):
            task.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, AgentError):
                await task
        await statuses.aclose()


def _ended(error: ErrorInfo | None, last: MigrationStatus | None) -> Phase | None:
    """The phase that it ended in: the reply may come before the status that says it."""
    if error is None:
        return Phase.DONE
    if last is not None and (last.phase in ENDED or error.consequence is Consequence.IN_DOUBT):
        return last.phase
    return _ENDS.get(error.consequence)


_ENDS = {
    Consequence.UNTOUCHED: Phase.REFUSED,
    Consequence.TAKEN_BACK: Phase.ROLLED_BACK,
    Consequence.STRANDED: Phase.STRANDED,
}


def _rehearsed(out: Out, shown: View, migration: str, wanted: Wanted, report: MigrationReport | None) -> int:
    """It would have worked; and how long it would have been frozen."""
    shown.close()
    said = report.model_dump(mode="json") if report else None
    if out.as_json:
        out.item({"type": "rehearsal", "ok": True, "exit_code": OK, "migration": migration, "report": said})
        return OK
    out.say(
        f"✔ {wanted.container} could be moved to {wanted.to}; it runs on where it is, and nothing is left there",
        "green",
    )
    if report is not None:
        was = (
            ("frozen here for the dump", report.held_ms),
            ("dump", report.dump_ms),
            ("restore there", report.restore_ms),
        )
        out.say("  " + ", ".join(f"{what} {duration(ms)}" for what, ms in was))
        expected = (
            f"  blackout of a move: {duration(report.rehearsed_ms)} measured, without the decision and the network"
        )
        out.say(f"{expected}; {duration(report.predicted_blackout_ms)} predicted")
        for note in report.notes:
            out.say(f"  note: {note}", "dim")
    return OK


def _tell(out: Out, shown: View, migration: str, outcome: Outcome) -> int:
    shown.ended(outcome.report, moved=outcome.moved)
    if out.as_json:
        report = outcome.report.model_dump(mode="json") if outcome.report else None
        out.item(
            {
                "type": "result",
                "ok": outcome.moved,
                "exit_code": outcome.code,
                "migration": migration,
                "phase": outcome.phase,
                "blackout_ms": outcome.report.blackout_ms if outcome.report else None,
                "total_ms": outcome.report.total_ms if outcome.report else None,
                "error": outcome.error.model_dump(mode="json") if outcome.error else None,
                "report": report,
            }
        )
    elif outcome.error is not None:
        out.error(outcome.error)
    elif not outcome.moved:
        out.warn(f"{migration} ended as {outcome.phase}, and nobody said why")
    return outcome.code
