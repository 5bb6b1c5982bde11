"""The words that look: would it move (`check`), is this host fit (`doctor`)."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.running import CONTAINERS, HOSTS, Json, control, local


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


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without a risk: as `setup`, and what is left over.")
    ] = False,
    daemon_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="dockerd's settings, if not where dockerd says.")
    ] = None,
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's settings.")] = Path(
        "/etc/transship/agent.toml"
    ),
    as_json: Json = False,
) -> None:
    """Is this host fit to give and take containers (as root)? All that is not as it should be, and what to do.

    Exit codes: 0 nothing is missing; 1 something is.
    """
    from agent.cli import doctor as story
    from agent.cli.output import Out
    from agent.cli.setup import Places

    out = Out(as_json=as_json)
    places = Places.of(config, daemon_json)
    local(out, lambda: story.doctor(out, places, fix=fix))
