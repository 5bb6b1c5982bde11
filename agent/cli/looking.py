"""The words that look and change nothing: would it move (`check`)."""

from typing import Annotated

import typer

from agent.cli.running import CONTAINERS, HOSTS, Json, control


def check(
    context: typer.Context,
    container: Annotated[
        str | None,
        typer.Argument(metavar="[CONTAINER]", help="Its name, or the beginning of its id.", autocompletion=CONTAINERS),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="HOST", help="Only there.", autocompletion=HOSTS)] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="HOST", help="Only what runs there.", autocompletion=HOSTS)
    ] = None,
    as_json: Json = False,
) -> None:
    """Would it move? All that stands against it, and how long it would be frozen; touches nothing.

    Without CONTAINER: all that run. Exit codes: 0 each could be moved (to HOST, or somewhere); 2 one could not.
    """
    from agent.cli import check as question

    control(context, as_json, lambda controller, out: question.check(controller, out, container, to, source))
