"""The short commands: cancel a migration, limit what it sends, and resolve one that is in doubt."""

import re

from agent.base.errors import Refused
from agent.cli.controller import Controller, checked
from agent.cli.output import OK, Out
from protocol.base import new_command_id
from protocol.commands import Cancel, CancelEvacuation, Limit, ListMigrations, OpenMigration, Resolve
from protocol.errors import ErrorCode
from protocol.status import ENDED, MigrationStatus, Phase


async def cancel(controller: Controller, out: Out, migration: str, host: str | None) -> int:
    if migration.startswith("e-"):
        return await _cancel_evacuation(controller, out, migration, host)
    status = await _status(controller, migration, host)
    source = host or (status.source if status else "")
    await controller.ask(source, _checked(Cancel, migration))
    if out.as_json:
        out.item({"ok": True, "migration": migration, "host": source})
    out.say(f"{source} takes {migration} back; the container runs on there")
    return OK


async def _cancel_evacuation(controller: Controller, out: Out, evacuation: str, host: str | None) -> int:
    found = [one.host for one in await controller.evacuations() if one.id == evacuation]
    if host is None and not found:
        raise Refused(
            ErrorCode.NO_SUCH_EVACUATION,
            f"no host has said anything of {evacuation}",
            hint="--host HOST asks a host all the same",
        )
    at = host or found[0]
    await controller.ask(at, checked(CancelEvacuation, evacuation=evacuation))
    if out.as_json:
        out.item({"ok": True, "evacuation": evacuation, "host": at})
    out.say(f"{at} begins nothing more of {evacuation}, and takes back what is not decided; it stays cordoned")
    return OK


async def limit(controller: Controller, out: Out, rate: str, migration: str | None, host: str | None) -> int:
    """Of a migration; or of all that leave a host."""
    bandwidth = bytes_a_second(rate)
    if migration is not None:
        status = await _status(controller, migration, host)
        command, at = _checked(Limit, migration, bandwidth=bandwidth), host or (status.source if status else "")
    elif host is not None:
        command, at = Limit(id=new_command_id(), bandwidth=bandwidth), host
    else:
        raise Refused(ErrorCode.BAD_COMMAND, "whose?", hint="say a migration, or --host HOST for all that leave it")
    await controller.ask(at, command)
    if out.as_json:
        out.item({"ok": True, "migration": migration, "host": at, "bandwidth": bandwidth})
    of = migration or f"everything that leaves {at}"
    out.say(f"{of}: {'no limit' if bandwidth is None else f'at most {rate} bytes a second'}, while containers run")
    return OK


def bytes_a_second(text: str) -> int | None:
    """`500k`, `20M`, `1G` (of 1024), a number; `none` is no limit."""
    if text == "none":
        return None
    found = re.fullmatch(r"([1-9]\d*)([kKMG]?)", text)
    if found is None:
        raise Refused(ErrorCode.BAD_COMMAND, f"{text!r} is no rate", hint="like 500k, 20M, 1G (bytes a second) or none")
    return int(found[1]) << {"": 0, "k": 10, "K": 10, "M": 20, "G": 30}[found[2]]


async def resolve(
    controller: Controller, out: Out, migration: str, decision: str, host: str | None, *, sure: bool
) -> int:
    """A person's word; says what it risks first."""
    status = await _status(controller, migration, host)
    at = host or await _resolver(controller, status)
    entry = await _journal(controller, at, migration)
    if not sure:
        for line in _risks(status, entry, decision, at):
            out.warn(line)
        if out.as_json or not _confirmed():
            raise Refused(ErrorCode.BAD_COMMAND, "not confirmed", hint="--yes says it without being asked")
    await controller.ask(at, _checked(Resolve, migration, decision=decision))
    if out.as_json:
        out.item({"ok": True, "migration": migration, "host": at, "decision": decision})
    out.say(f"{at} was told: {decision} {migration}")
    return OK


def _checked(
    kind: type[Cancel | Limit | Resolve], migration: str, **more: str | int | None
) -> Cancel | Limit | Resolve:
    try:
        return kind.model_validate({"id": new_command_id(), "migration": migration, **more})
    except ValueError:
        raise Refused(
            ErrorCode.BAD_COMMAND, f"{migration!r} is no migration's id", hint="they look like m-0123456789abcdef"
        ) from None


async def _status(controller: Controller, migration: str, host: str | None) -> MigrationStatus | None:
    """What is known of it; needed only where the host was not said."""
    _checked(Cancel, migration)
    status = await controller.migration(migration)
    if status is None and host is None:
        raise Refused(
            ErrorCode.NO_SUCH_MIGRATION,
            f"no host has said anything of {migration}",
            hint="`transship migrations` lists them; --host HOST asks a host all the same",
        )
    return status


async def _resolver(controller: Controller, status: MigrationStatus | None) -> str:
    """Who is to be told: the source, which decides, or if it is away the target that waits for it."""
    assert status is not None
    if status.phase in ENDED - {Phase.STRANDED}:
        raise Refused(
            ErrorCode.TOO_LATE,
            f"{status.id} has ended as {status.phase}: there is nothing to resolve",
            hint=f"--host {status.target} asks the target, should that still wait",
        )
    online = {one.host for one in await controller.hosts() if one.online}
    for host in (status.source, status.target):
        if host in online:
            return host
    raise Refused(
        ErrorCode.HOST_OFFLINE,
        f"both {status.source} and {status.target} are offline",
        hint="the agent of the host that has come back must run to be told",
    )


async def _journal(controller: Controller, host: str, migration: str) -> OpenMigration | None:
    reply = await controller.ask(host, ListMigrations(id=new_command_id()))
    return next((one for one in reply.migrations or () if one.id == migration), None)


def _risks(status: MigrationStatus | None, entry: OpenMigration | None, decision: str, at: str) -> list[str]:
    what = entry.container if entry else status.container if status else "the container"
    role, peer = (entry.role, entry.peer) if entry else ("", "the other host")
    lines = []
    if entry is None:
        lines.append(f"{at} has no such migration open: it may refuse this")
    elif entry.doubt:
        lines.append(entry.doubt)
    running = entry is not None and entry.phase is Phase.RUNNING
    match (role, decision):
        case (_, "commit") if running:
            risk = f"what {what} had in memory, and is not on the target yet, is lost for good; it is ended there, and"
            risk += " started anew if its restart policy wants that."
        case ("target", "commit"):
            risk = f"{what} will run on {at}. If {peer} comes back and never decided so, it runs there too: twice."
        case ("target", "abort"):
            risk = f"the copy on {at} is thrown away. If {peer} had decided to give {what} away, it is lost for good."
        case ("source", "commit"):
            risk = f"{what} is taken for running on {peer}, and removed from {at}. If {peer} has it not, it is lost."
        case ("source", "abort"):
            risk = f"{what} runs on here, on {at}. If {peer} already runs its copy, it runs twice."
        case _:
            risk = f"if {at} is wrong about the other host, {what} may run twice, or be lost."
    return [*lines, f"What this risks: {risk}", "Be sure of what has become of the other host."]


def _confirmed() -> bool:
    import typer

    return typer.confirm("Go on?", default=False, err=True)
