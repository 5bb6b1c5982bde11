"""What every word of the command line needs: completion, the common options, and how it is run and left."""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from agent.cli.controller import Controller
    from agent.cli.output import Out


def offer(what: str) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """Completion, imported only when the shell asks for it."""

    def offered(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from agent.cli import completion

        found: list[tuple[str, str]] = getattr(completion, what)(context, incomplete)
        return found

    return offered


HOSTS, CONTAINERS, MIGRATIONS = offer("hosts"), offer("containers"), offer("migrations")

Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON object a line, errors too.")]
Host = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Only this host.", autocompletion=HOSTS)]
MigrationArgument = Annotated[
    str, typer.Argument(metavar="ID", help="As `transship migrations` shows it.", autocompletion=MIGRATIONS)
]

Cancellable = Annotated[
    str,
    typer.Argument(metavar="ID", help="Of a migration, or of an evacuation.", autocompletion=offer("cancellable")),
]

# of `migrate`
AllowPostcopy = Annotated[
    bool,
    typer.Option(
        "--allow-postcopy",
        help="Let `auto` choose it, or precopy end in it, where nothing safer keeps to --max-blackout.",
    ),
]
KeepSource = Annotated[bool, typer.Option("--keep-source", help="Keep the stopped container at the source, renamed.")]
Strategy = Annotated[
    str,
    typer.Option(
        metavar="auto|cold|precopy|postcopy", help="How its memory gets across; auto: the safest within --max-blackout."
    ),
]
Throttle = Annotated[
    int,
    typer.Option(
        metavar="PERCENT", min=0, max=99, help="Let precopy slow it down by as much, step by step, where it must."
    ),
]
Patience = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0, help="Wait no longer; the move itself goes on.")
]
Compress = Annotated[
    str, typer.Option(metavar="auto|zstd|none", help="Pack what is sent; auto: where the link is the slower.")
]
Bandwidth = Annotated[
    str, typer.Option(metavar="RATE", help="Bytes a second at most while it runs, like 20M; `limit` changes it.")
]
Container = Annotated[
    str, typer.Argument(metavar="CONTAINER", help="Its name, or the beginning of its id.", autocompletion=CONTAINERS)
]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="Do all but let it run there, and take it all back: would it work?")
]


def control(context: typer.Context, as_json: bool, story: Callable[["Controller", "Out"], Awaitable[int]]) -> NoReturn:
    """Run something that needs the broker, and leave with its exit code."""
    import asyncio

    from agent.cli.controller import Controller
    from agent.cli.output import Out
    from agent.cli.settings import Options, load

    out = Out(as_json=as_json)

    async def run() -> int:
        async with Controller(load(Options(**context.obj))) as controller:
            return await story(controller, out)

    local(out, lambda: asyncio.run(run()))


def local(out: "Out", story: Callable[[], int]) -> NoReturn:
    import asyncio

    from agent.base.errors import AgentError

    try:
        code = story()
    except AgentError as error:
        code = out.error(error.info())
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = out.interrupted()
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or the interpreter complains when it flushes
        code = 0
    raise typer.Exit(code)
