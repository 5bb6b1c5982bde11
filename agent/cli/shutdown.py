"""`transship adopt`, `hibernated`, `shutdown-notice`: containers that hibernate. The first two work on this host."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.running import HOSTS, Json, control, local

if TYPE_CHECKING:
    from agent.cli.controller import Controller
    from agent.cli.output import Out

Sure = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _agent_file() -> Path:
    return Path(os.environ.get("TRANSSHIP_CONFIG", "/etc/transship/agent.toml"))


def adopt(
    container: Annotated[str, typer.Argument(metavar="CONTAINER", help="On this host.")],
    stop_timeout: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, help="How long a stop may take: as long as its memory needs.")
    ] = 120,
    discard_files: Annotated[
        bool, typer.Option("--discard-files", help="What it has written outside of volumes is of no worth.")
    ] = False,
    sure: Sure = False,
    as_json: Json = False,
) -> None:
    """Make a container of this host anew, so that `docker stop` hibernates it. Says first what that means."""
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    import asyncio

    local(out, lambda: asyncio.run(_adopt(out, container, stop_timeout, discard=discard_files, sure=sure)))


async def _adopt(out: "Out", name: str, stop_timeout: int, *, discard: bool, sure: bool) -> int:
    from agent.base import config
    from agent.base.errors import Refused
    from agent.cli.external import docker_here, found_here
    from agent.shutdown import adopt as story
    from protocol.errors import ErrorCode

    settings = config.load(_agent_file())
    wanted = story.Wanted(settings.runtime, stop_timeout, discard)
    async with docker_here() as docker:
        found = await found_here(docker, name)
        for line in await story.check(docker, found, wanted):
            out.say(f"• {line}")
        if not sure and (out.as_json or not typer.confirm("Go on?", default=False, err=True)):
            raise Refused(ErrorCode.BAD_COMMAND, "not confirmed", hint="--yes says it without being asked")
        made = await story.adopt(docker, found, wanted)
    if out.as_json:
        out.item({"ok": True, "container": found.name, "id": made, "was": found.id})
    out.say(f"{found.name} hibernates when it is stopped", "green")
    return 0


def hibernated(
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="CONTAINER", help="Throw its memory away: it will start cold.")
    ] = None,
    sure: Sure = False,
    as_json: Json = False,
) -> None:
    """Containers of this host that sleep (as root); `docker start` wakes them."""
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    local(out, lambda: _hibernated(out, forget, sure=sure))


def _hibernated(out: "Out", forget: str | None, *, sure: bool) -> int:
    from agent.base.errors import Refused
    from agent.cli.output import size
    from agent.runtime import asleep
    from protocol.errors import ErrorCode

    found = {}
    for record in sorted(Path(asleep.ROOT).glob(f"*/{asleep.RECORD}")):
        if record.parent.suffix != asleep.PART:
            found[record.parent] = json.loads(record.read_text())
    if forget is not None:
        asleep_now = [(folder, about) for folder, about in found.items() if folder.suffix != asleep.WAKING]
        mine = [folder for folder, about in asleep_now if forget in (about["name"], about["container_id"])]
        if not mine:
            raise Refused(ErrorCode.NO_SUCH_CONTAINER, f"no container {forget} sleeps on this host")
        if not sure and (out.as_json or not typer.confirm("Its memory is lost. Go on?", default=False, err=True)):
            raise Refused(ErrorCode.BAD_COMMAND, "not confirmed", hint="--yes says it without being asked")
        for folder in mine:
            gone = folder.with_name(f"{folder.name}{asleep.PART}")  # in one step: a start must not meet a half of it
            folder.rename(gone)
            shutil.rmtree(gone)
        out.say(f"the memory of {forget} is gone: it will start cold")
        return 0
    if out.as_json:
        for folder, about in found.items():
            keys = ("name", "container_id", "reason", "at", "bytes", "on_stale")
            out.item({**{key: about[key] for key in keys}, "waking": folder.suffix == asleep.WAKING})
        return 0
    rows = [
        (about["name"], about["container_id"][:12], f"{(time.time() - about['at']) / 60:.0f} min", size(about["bytes"]))
        for about in found.values()
    ]
    out.table(("CONTAINER", "ID", "SLEEPS", "MEMORY"), rows, empty="nothing sleeps here")
    return 0


def shutdown_notice(
    context: typer.Context,
    seconds: Annotated[str, typer.Option("--in", metavar="SECONDS", help="When the host will be gone, like 90s.")] = "",
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Else this one.", autocompletion=HOSTS)
    ] = None,
    called_off: Annotated[bool, typer.Option("--called-off", help="It stays up after all.")] = False,
    as_json: Json = False,
) -> None:
    """Tell an agent that its host goes down (a notice of the cloud): containers are brought to safety in that time."""
    if bool(seconds) == called_off:
        raise typer.BadParameter("say either --in SECONDS or --called-off")
    try:
        left = float(seconds.removesuffix("s")) if seconds else 90.0
    except ValueError:
        raise typer.BadParameter(f"{seconds!r} is no number of seconds") from None
    from agent.base import config
    from agent.cli.controller import checked
    from protocol.base import new_command_id
    from protocol.commands import ShutdownNotice

    async def story(controller: "Controller", out: "Out") -> int:
        there = host or config.load(_agent_file()).host
        command = checked(ShutdownNotice, id=new_command_id(), seconds=left, called_off=called_off)
        await controller.ask(there, command)
        if out.as_json:
            out.item({"ok": True, "host": there})
        out.say(f"{there} was told; `transship events --host {there}` shows what it does")
        return 0

    control(context, as_json, story)
