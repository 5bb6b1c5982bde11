"""What there is: hosts, containers, migrations, events. All of it is what the agents say by themselves, retained."""

import asyncio
from datetime import datetime

from rich.markup import escape
from rich.text import Text

from agent.base.errors import AgentError, Refused
from agent.cli import outlook
from agent.cli.controller import Controller
from agent.cli.output import OK, Out, duration, size
from protocol.base import new_command_id, utc_now
from protocol.commands import ListMigrations
from protocol.errors import ErrorCode
from protocol.status import ENDED, ContainerStatus, Event, HostStatus, MigrationStatus, Phase

_FEATURES = ("mem_dirty_track", "uffd-noncoop")
"""Those that strategies ask for; restores ask for some too, which every current kernel has."""
_STATE_STYLES = {"running": "green", "paused": "yellow", "restarting": "yellow", "dead": "red"}
_PHASE_STYLES = {
    Phase.DONE: "green",
    Phase.REFUSED: "red",
    Phase.ROLLED_BACK: "yellow",
    Phase.STRANDED: "bold red",
    Phase.COMMITTED: "bold yellow",
}


async def hosts(controller: Controller, out: Out) -> int:
    found = await controller.hosts()
    if out.as_json:
        for host in found:
            out.item(host)
    else:
        about = ("HOST", "STATE", "AGENT", "DOCKER", "CRIU", "FEATURES", "KERNEL")
        columns = (*about, "RUNNING", "MOVES", "MEMORY FREE", "")
        out.table(columns, [_host_row(host) for host in found], empty="no agent has ever been at this broker")
    _warn(controller, out)
    return OK


def _host_row(host: HostStatus) -> tuple[str, ...]:
    if not host.online:
        return (host.host, "[red]offline[/]", *[""] * 9)
    engine = host.engine
    memory = f"{size(host.memory_free_bytes)} of {size(host.memory_bytes)}"
    return (
        f"[bold]{host.host}[/]",
        "[yellow]cordoned[/]" if host.cordoned else "[green]online[/]",
        host.agent_version,
        engine.docker if engine else "",
        engine.criu if engine else "",
        ", ".join(name for name in engine.criu_features if name in _FEATURES) if engine else "",
        escape(host.kernel),
        str(host.running),
        str(host.migrations),
        memory,
        f"[yellow]{'; '.join(_lacks(host))}[/]",
    )


def _lacks(host: HostStatus) -> list[str]:
    """Why this host can't give or take containers, as far as it says."""
    engine, lacks = host.engine, [escape(host.certificates_warning)] if host.certificates_warning else []
    if engine is None or not engine.docker:
        return [*lacks, "dockerd does not answer"]
    if not engine.criu:
        lacks.append("no CRIU")
    if not engine.runtime_registered:
        lacks.append("runtime not registered: `transship setup`")
    return lacks


async def ps(controller: Controller, out: Out, host: str | None) -> int:
    found = await controller.containers(host)
    states = {one.host: one for one in await controller.hosts()}
    if host is not None and host not in states:
        raise Refused(ErrorCode.NO_SUCH_HOST, f"there is no host {host}", hint=known(states))
    if out.as_json:
        for container in found:
            out.item(container)
    else:
        offline = {name for name, one in states.items() if not one.online}
        rows = [_container_row(one, offline=one.host in offline) for one in found]
        columns = ("HOST", "ID", "NAME", "IMAGE", "STATE", "MIGRATION", "HOME", "COULD MOVE TO")
        out.table(columns, rows, empty=f"no containers on {host}" if host else "no containers")
        for name in sorted(offline & {one.host for one in found}):
            out.warn(f"{name} is offline: what is shown of it is what it said last")
    _warn(controller, out)
    return OK


def _container_row(one: ContainerStatus, *, offline: bool) -> tuple[str | Text, ...]:
    state = one.state + (f" ({one.health})" if one.health else "")
    style = "dim" if offline else _STATE_STYLES.get(one.state, "dim")
    return (
        one.host,
        one.id[:12],
        f"[bold]{one.name}[/]",
        escape(one.image),
        f"[{style}]{state}[/]",
        one.migration or "",
        one.home or "",
        outlook.shortly(None if offline else one.outlook),
    )


async def migrations(controller: Controller, out: Out) -> int:
    found = await controller.migrations()
    doubts = await _doubts(controller, found)
    if out.as_json:
        for one in found:
            out.item(one, **({"doubt": doubts[one.id]} if one.id in doubts else {}))
    else:
        columns = ("ID", "CONTAINER", "FROM", "TO", "PHASE", "STARTED", "TOOK", "SENT", "BLACKOUT", "")
        out.table(columns, [_migration_row(one, doubts) for one in found], empty="no migrations")
    _warn(controller, out)
    return OK


def _migration_row(one: MigrationStatus, doubts: dict[str, str]) -> tuple[str, ...]:
    style = _PHASE_STYLES.get(one.phase, "cyan")
    report = one.report
    why = doubts.get(one.id) or (one.error.message if one.error else one.part)
    took = report.total_ms if report else (one.at - one.started_at).total_seconds() * 1000
    return (
        one.id,
        f"[bold]{one.container}[/]",
        one.source,
        one.target,
        f"[{style}]{one.phase}[/]",
        ago(one.started_at),
        duration(took),
        size(one.bytes_sent),
        duration(report.blackout_ms) if report else "",
        f"[{'yellow' if one.id in doubts or one.error else 'dim'}]{escape(why)}[/]",
    )


async def _doubts(controller: Controller, found: list[MigrationStatus]) -> dict[str, str]:
    """Why open migrations need a person, where they do: asked of the hosts that know, which may be away."""
    online = {one.host for one in await controller.hosts() if one.online}
    open_at = {host for one in found if one.phase not in ENDED for host in (one.source, one.target)} & online
    answers = await asyncio.gather(*(_journal(controller, host) for host in sorted(open_at)))
    return {migration: doubt for answer in answers for migration, doubt in answer.items() if doubt}


async def _journal(controller: Controller, host: str) -> dict[str, str]:
    try:
        reply = await controller.ask(host, ListMigrations(id=new_command_id()), patience=3)
    except AgentError:
        return {}  # it has gone meanwhile; what is retained is shown all the same
    return {one.id: one.doubt for one in reply.migrations or ()}


async def events(controller: Controller, out: Out, host: str | None, *, follow: bool, seconds: float) -> int:
    try:
        async with asyncio.timeout(None if follow else seconds):
            async for event in controller.events(host):
                if out.as_json:
                    out.item(event)
                else:
                    _show_event(out, event)
    except TimeoutError:
        pass
    return OK


def _show_event(out: Out, event: Event) -> None:
    line = Text(event.at.astimezone().strftime("%H:%M:%S.%f")[:-3], style="dim")
    line.append(f"  {event.host:<12}", style="cyan").append(f"  {event.kind:<18}", style="bold")
    line.append(f"  {event.container or event.container_id[:12]}")
    if event.migration:
        line.append(f"  {event.migration}", style="dim")
    for key, value in event.detail.items():
        line.append(f"  {key}=", style="dim").append(value)
    out.console.print(line, soft_wrap=True)


def known(hosts: dict[str, HostStatus]) -> str:
    """Which hosts there are, as a hint."""
    names = [name if one.online else f"{name} (offline)" for name, one in sorted(hosts.items())]
    return f"known hosts: {', '.join(names)}" if names else "no agent has ever been at this broker"


def ago(then: datetime) -> str:
    seconds = max(0, int((utc_now() - then).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def _warn(controller: Controller, out: Out) -> None:
    if controller.unreadable:
        topics = ", ".join(sorted(set(controller.unreadable)))
        out.warn(f"not understood, perhaps of another version: {topics}")
