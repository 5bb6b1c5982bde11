"""The words for checkpoints, and their help; registered by main.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.running import CONTAINERS, HOSTS, Host, Json, control, local

if TYPE_CHECKING:
    from agent.cli.output import Out

KeyFile = Annotated[
    Path | None, typer.Option("--key-file", metavar="FILE", help="Seals and opens the archive; 16 bytes or more.")
]


def checkpoint(
    context: typer.Context,
    container: Annotated[
        str,
        typer.Argument(metavar="CONTAINER", help="Its name, or the beginning of its id.", autocompletion=CONTAINERS),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FILE|-|STORE",
            help="Where the archive goes: oci:REGISTRY/NAME:TAG; else the host's own folder.",
        ),
    ] = "",
    leave_running: Annotated[
        bool, typer.Option("--leave-running", "-R", help="Let it go on; else it is stopped when the archive is safe.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="HOST", help="Where it runs; needed if several have that name.", autocompletion=HOSTS
        ),
    ] = None,
    tcp: Annotated[
        str, typer.Option(metavar="auto|keep|close|refuse", help="What becomes of established connections.")
    ] = "auto",
    execs: Annotated[
        str, typer.Option(metavar="refuse|wait", help="What to do while `docker exec` runs something in it.")
    ] = "refuse",
    compression: Annotated[str, typer.Option("--compress", metavar="zstd|gzip|none")] = "zstd",
    with_image: Annotated[
        bool, typer.Option("--with-image", help="Put its image into the archive, for hosts that lack it.")
    ] = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Write a running container into an archive: memory, files, volumes, log.

    FILE and - are on this host, and need root. Read it with `transship inspect`, or with checkpointctl.
    """
    from agent.cli import checkpoint as story

    wanted = story.Wanted(container, to, host, leave_running, tcp, execs, compression, with_image, key_file)
    control(context, as_json, lambda controller, out: story.checkpoint(controller, out, wanted))


def restore(
    context: typer.Context,
    archive: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-|ID|STORE", help="An archive on this host, one of a host's own, or oci:REGISTRY/NAME:TAG."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="A clone of that name, with addresses and volumes of its own.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="HOST", help="Where it is to run; else where the archive is.")
    ] = None,
    host: Annotated[str | None, typer.Option("--from", metavar="HOST", help="That has the archive of this ID.")] = None,
    tcp: Annotated[str, typer.Option(metavar="auto|close", help="Whether connections go on as they were.")] = "auto",
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Make a running container from an archive, as often as you like."""
    from agent.cli import checkpoint as story

    wanted = story.WantedBack(archive, host, on, name, tcp, key_file)
    control(context, as_json, lambda controller, out: story.restore(controller, out, wanted))


def inspect(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="An archive; it is read here, no agent is asked.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all of it, and compare every hash.")] = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """What is in an archive: whose it is, its members and sizes, and with --verify whether it is as it was written."""
    from agent.cli import inspect as story
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    local(out, lambda: story.inspect(out, archive, key_file, verify=verify))


checkpoints_app = typer.Typer(help="The checkpoints in the hosts' own folders.", invoke_without_command=True)
CheckpointArgument = Annotated[str, typer.Argument(metavar="ID", help="As `transship checkpoints` shows it.")]


@checkpoints_app.callback()
def checkpoints(context: typer.Context, host: Host = None, as_json: Json = False) -> None:
    """List them; see the commands for what else can be done."""
    if context.invoked_subcommand is None:
        from agent.cli import stored

        control(context, as_json, lambda controller, out: stored.show(controller, out, host))


@checkpoints_app.command("rm")
def checkpoints_rm(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    host: Host = None,
    force: Annotated[bool, typer.Option("--force", help="A pinned one, too.")] = False,
    as_json: Json = False,
) -> None:
    """Remove one."""
    from agent.cli import stored

    control(context, as_json, lambda controller, out: stored.remove(controller, out, checkpoint, host, force=force))


@checkpoints_app.command("pin")
def checkpoints_pin(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    host: Host = None,
    undo: Annotated[bool, typer.Option("--undo", help="No longer.")] = False,
    as_json: Json = False,
) -> None:
    """Keep one whatever the retention says."""
    from agent.cli import stored

    control(context, as_json, lambda controller, out: stored.pin(controller, out, checkpoint, host, pinned=not undo))


criu_app = typer.Typer(help="CRIU straight on a container's processes, on this host: no agent, no runc, no Docker API.")
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print each command as it would be typed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the commands, and do nothing.")]
Name = Annotated[str, typer.Argument(metavar="CONTAINER")]


@criu_app.command("dump")
def criu_dump(
    container: Name,
    leave_running: Annotated[bool, typer.Option("--leave-running", "-R", help="Let it go on.")] = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Dump its process tree; Docker sees it exit."""
    from agent.cli import external
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    local(out, lambda: external.dump(out, container, leave_running=leave_running, verbose=verbose, dry_run=dry_run))


@criu_app.command("restore")
def criu_restore(container: Name, verbose: Verbose = False, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Restore it beside Docker: with its files, volumes and address, but not as Docker's child."""
    from agent.cli import external
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    local(out, lambda: external.restore(out, container, verbose=verbose, dry_run=dry_run))


native_app = typer.Typer(help="Docker's own checkpoints, on this host: experimental, and of use below Docker 28 only.")
Own = Annotated[str, typer.Argument(metavar="NAME", help="Of the checkpoint.")]
TarFile = Annotated[Path, typer.Argument(metavar="FILE")]


@native_app.command("create")
def native_create(
    container: Name,
    name: Own,
    leave_running: Annotated[bool, typer.Option("--leave-running", "-R", help="Let it go on.")] = False,
    as_json: Json = False,
) -> None:
    """Take one; dockerd keeps it, and the container is stopped."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.create(out, container, name, leave_running=leave_running))


@native_app.command("ls")
def native_ls(container: Name, as_json: Json = False) -> None:
    """List those of a container."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.show(out, container))


@native_app.command("rm")
def native_rm(container: Name, name: Own, as_json: Json = False) -> None:
    """Remove one."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.remove(out, container, name))


@native_app.command("start")
def native_start(container: Name, name: Own, as_json: Json = False) -> None:
    """Start a stopped container from one, and prove that it was a restore."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.start(out, container, name))


@native_app.command("save")
def native_save(container: Name, name: Own, file: TarFile, verbose: Verbose = False, as_json: Json = False) -> None:
    """Write one, with the container's files, into a tar for another host."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.save(out, container, name, file, verbose=verbose))


@native_app.command("load")
def native_load(container: Name, file: TarFile, verbose: Verbose = False, as_json: Json = False) -> None:
    """Put such a tar into a container that was created there, and never started."""
    from agent.cli import native

    out = _out(as_json)
    local(out, lambda: native.load(out, container, file, verbose=verbose))


def _out(as_json: bool) -> "Out":
    from agent.cli.output import Out

    return Out(as_json=as_json)
