"""The words of the command line, and their help. Everything heavy is imported only by the command that needs it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli import archives, looking, shutdown
from agent.cli import hosts as of_hosts
from agent.cli.running import (
    HOSTS,
    AllowPostcopy,
    Bandwidth,
    Cancellable,
    Compress,
    Container,
    Host,
    Json,
    KeepSource,
    MigrationArgument,
    Patience,
    Rehearse,
    Strategy,
    Throttle,
    control,
    local,
)

app = typer.Typer(
    name="transship",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
pki_app = typer.Typer(help="The cluster's certificate authority, and the certificates that name its hosts.")
app.add_typer(pki_app, name="pki", no_args_is_help=True)


BROKER = "Where the broker is"


@app.callback()
def connection(
    context: typer.Context,
    broker: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="The MQTT broker.", rich_help_panel=BROKER)
    ] = None,
    tls: Annotated[bool | None, typer.Option("--tls/--no-tls", help="Speak TLS to it.", rich_help_panel=BROKER)] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The authority that signed its name.", rich_help_panel=BROKER)
    ] = None,
    username: Annotated[str | None, typer.Option(help="Who to be there.", rich_help_panel=BROKER)] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the password.", rich_help_panel=BROKER)
    ] = None,
) -> None:
    """Moves running Docker containers between hosts.

    The broker is also found by TRANSSHIP_BROKER__HOST, __PORT, __TLS, __CA, __USERNAME, __PASSWORD and
    __PASSWORD_FILE, by the table [broker] of ~/.config/transship/cli.toml, and by that of /etc/transship/agent.toml.

    Exit codes: 0 done; 1 taken back, the container runs on; 2 refused, nothing was touched; 3 in doubt or stranded;
    4 no broker.
    """
    context.obj = {"broker": broker, "tls": tls, "ca": ca, "username": username, "password_file": password_file}


@app.command()
def hosts(context: typer.Context, as_json: Json = False) -> None:
    """The hosts that agents run on, and what they can do."""
    from agent.cli import listing

    control(context, as_json, listing.hosts)


@app.command()
def ps(context: typer.Context, host: Host = None, as_json: Json = False) -> None:
    """The containers of all hosts."""
    from agent.cli import listing

    control(context, as_json, lambda controller, out: listing.ps(controller, out, host))


@app.command()
def top(context: typer.Context, as_json: Json = False) -> None:
    """Hosts, moves and containers as they change; q leaves. Not on a terminal: the same once."""
    from agent.cli import top as live

    control(context, as_json, live.top)


@app.command()
def migrate(
    context: typer.Context,
    container: Container,
    to: Annotated[str, typer.Option("--to", metavar="HOST", help="Where it is to run.", autocompletion=HOSTS)],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="HOST", help="Where it runs; needed if several have that name.", autocompletion=HOSTS
        ),
    ] = None,
    strategy: Strategy = "auto",
    tcp: Annotated[
        str,
        typer.Option(
            metavar="auto|keep|close|refuse",
            help="What becomes of established connections; auto: as the label transship.tcp says.",
        ),
    ] = "auto",
    execs: Annotated[
        str, typer.Option(metavar="refuse|wait", help="What to do while `docker exec` runs something in it.")
    ] = "refuse",
    keep_source: KeepSource = False,
    max_blackout: Annotated[
        int | None, typer.Option(metavar="MS", min=1, help="Refuse if it would be frozen for longer.")
    ] = None,
    allow_postcopy: AllowPostcopy = False,
    throttle: Throttle = 0,
    bandwidth: Bandwidth = "none",
    compress: Compress = "auto",
    rehearse: Rehearse = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")] = False,
    timeout: Patience = None,
    as_json: Json = False,
) -> None:
    """Move a running container to another host.

    Ctrl-C ends the watching, not the move.
    """
    from agent.cli import migrate as story

    wanted = story.Wanted(
        container=container,
        to=to,
        source=source,
        strategy=strategy,
        tcp=tcp,
        execs=execs,
        keep_source=keep_source,
        max_blackout_ms=max_blackout,
        bandwidth=bandwidth,
        compress=compress,
        allow_postcopy=allow_postcopy,
        throttle=throttle,
        rehearse=rehearse,
        detach=detach,
        timeout=timeout,
    )
    control(context, as_json, lambda controller, out: story.migrate(controller, out, wanted))


app.command()(looking.check)
app.command()(looking.doctor)
app.command()(of_hosts.evacuate)
app.command("return")(of_hosts.give_back)
app.command()(of_hosts.cordon)
app.command()(of_hosts.uncordon)
app.command()(archives.checkpoint)
app.command()(archives.restore)
app.command()(archives.inspect)
app.add_typer(archives.checkpoints_app, name="checkpoints")
app.add_typer(archives.native_app, name="native", no_args_is_help=True)
app.add_typer(archives.criu_app, name="criu", no_args_is_help=True)
app.command()(shutdown.adopt)
app.command()(shutdown.hibernated)
app.command("shutdown-notice")(shutdown.shutdown_notice)


@app.command()
def cancel(
    context: typer.Context,
    migration: Cancellable,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The source, if it is not known.", autocompletion=HOSTS)
    ] = None,
    as_json: Json = False,
) -> None:
    """Take a migration back, which is refused once it is decided; or end an evacuation."""
    from agent.cli import commands

    control(context, as_json, lambda controller, out: commands.cancel(controller, out, migration, host))


@app.command()
def limit(
    context: typer.Context,
    rate: Annotated[str, typer.Argument(metavar="RATE", help="Bytes a second, like 500k, 20M or 1G; or none.")],
    migration: Annotated[str | None, typer.Argument(metavar="[MIGRATION]", help="Else all that leave --host.")] = None,
    host: Host = None,
    as_json: Json = False,
) -> None:
    """Change how fast a migration may send while its container runs, or all that leave a host together."""
    from agent.cli import commands

    control(context, as_json, lambda controller, out: commands.limit(controller, out, rate, migration, host))


@app.command()
def migrations(context: typer.Context, as_json: Json = False) -> None:
    """The migrations that go on, and those that ended lately."""
    from agent.cli import listing

    control(context, as_json, listing.migrations)


@app.command()
def resolve(
    context: typer.Context,
    migration: MigrationArgument,
    commit: Annotated[bool, typer.Option("--commit", help="It was decided: the container is the target's.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="It was not decided: the container is the source's.")] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="HOST", help="Whom to tell; else the source, or the target.", autocompletion=HOSTS
        ),
    ] = None,
    sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Decide a migration in doubt, for a host that never comes back. Says first what that risks."""
    if commit == abort:
        raise typer.BadParameter("say either --commit or --abort")
    from agent.cli import commands

    decision = "commit" if commit else "abort"
    control(
        context,
        as_json,
        lambda controller, out: commands.resolve(controller, out, migration, decision, host, sure=sure),
    )


@app.command()
def events(
    context: typer.Context,
    host: Host = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until Ctrl-C.")] = False,
    seconds: Annotated[float, typer.Option("--for", metavar="SECONDS", min=0, help="Without --follow.")] = 10.0,
    as_json: Json = False,
) -> None:
    """What happens on the hosts, as it happens."""
    from agent.cli import listing

    control(
        context,
        as_json,
        lambda controller, out: listing.events(controller, out, host, follow=follow, seconds=seconds),
    )


@app.command()
def agent(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The settings.", envvar="TRANSSHIP_CONFIG")] = Path(
        "/etc/transship/agent.toml"
    ),
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Each outside command; twice: what it says, too.")
    ] = 0,
) -> None:
    """Run the agent of this host."""
    from agent.daemon import main as run_agent

    raise typer.Exit(run_agent(config, verbose))


@app.command()
def setup(
    remove: Annotated[bool, typer.Option("--remove", help="Take it all back, except keys and journal.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --remove: keys, journal and settings too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what is missing.")] = False,
    daemon_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="dockerd's settings, if not where dockerd says.")
    ] = None,
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's settings.")] = Path(
        "/etc/transship/agent.toml"
    ),
    as_json: Json = False,
) -> None:
    """Prepare this host (as root): the runtime in dockerd, folders, settings, the service. Restarts nothing.

    Can be run again at any time.
    """
    if remove and check:
        raise typer.BadParameter("say either --remove or --check")
    if purge and not remove:
        raise typer.BadParameter("--purge goes with --remove")
    from agent.cli import setup as story
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    places = story.Places.of(config, daemon_json)
    if check:
        from agent.cli import checks

        local(out, lambda: checks.check(out, places))
    local(out, lambda: story.remove(out, places, purge=purge) if remove else story.install(out, places))


@pki_app.command("init")
def pki_init(
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the authority lies.")] = Path(
        "/etc/transship/pki"
    ),
    name: Annotated[str, typer.Option(help="What it is called.")] = "transship CA",
    days: Annotated[int, typer.Option(min=1, help="How long it is valid.")] = 3650,
    as_json: Json = False,
) -> None:
    """Make the authority: ca.crt for every host, ca.key to be kept from all of them."""
    from agent.cli import keys
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    local(out, lambda: keys.make_authority(out, out_dir, name, days))


@pki_app.command("host")
def pki_host(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The host's name, as in its agent.toml.")],
    ip: Annotated[list[str] | None, typer.Option("--ip", metavar="ADDRESS", help="An address of it.")] = None,
    dns: Annotated[list[str] | None, typer.Option("--dns", metavar="NAME", help="A further name of it.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write to; else ./NAME.")
    ] = None,
    ca: Annotated[Path, typer.Option("--ca-dir", metavar="DIR", help="Where the authority lies.")] = Path(
        "/etc/transship/pki"
    ),
    days: Annotated[int, typer.Option(min=1, help="How long it is valid.")] = 730,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Sign a host's certificate: host.crt, host.key and ca.crt, to be copied to its /etc/transship/pki."""
    from agent.cli import keys
    from agent.cli.output import Out

    out = Out(as_json=as_json)
    wanted = keys.HostWanted(name, tuple(dns or ()), tuple(ip or ()), days)
    local(out, lambda: keys.make_host(out, wanted, ca, out_dir or Path(name), force=force))


@app.command()
def version(as_json: Json = False) -> None:
    """The version of this program, and of the contract that it speaks."""
    from agent import __version__

    if not as_json:
        typer.echo(f"transship {__version__}")
        return
    from agent.cli.output import Out
    from protocol import PROTOCOL_VERSION

    python = ".".join(map(str, sys.version_info[:3]))
    Out(as_json=True).item({"version": __version__, "protocol": PROTOCOL_VERSION, "python": python})


def run(arguments: Sequence[str]) -> int:
    """The whole command line; the exit code."""
    command: Any = typer.main.get_command(app)
    try:
        result = command.main(args=list(arguments), prog_name="transship", standalone_mode=False)
    except typer.Abort:
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors, wherever this version of it keeps them
            raise
        return _misused(error, as_json="--json" in arguments)
    return result if isinstance(result, int) else 0


def _misused(error: Any, *, as_json: bool) -> int:
    if as_json:
        from agent.cli.output import Out
        from protocol.errors import ErrorCode, ErrorInfo

        return Out(as_json=True).error(ErrorInfo(code=ErrorCode.BAD_COMMAND, message=error.format_message()))
    from typer import rich_utils

    rich_utils.rich_format_error(error)
    return int(error.exit_code)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
