"""The words about a whole host, and their help: evacuate, return, cordon, uncordon. What they do: evacuate.py."""

from typing import Annotated

import typer

from agent.cli.running import HOSTS, Json, control

HostArgument = Annotated[str, typer.Argument(metavar="HOST", autocompletion=HOSTS)]
Deadline = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="90s, 5m: then nothing more is begun, and what is not decided is taken back."),
]
Parallel = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Moves at once; the host's own limit is the default, and the most."),
]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what would be done, and why.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")]


def evacuate(
    context: typer.Context,
    host: HostArgument,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="A,B", help="Only to these hosts.", autocompletion=HOSTS)
    ] = None,
    deadline: Deadline = None,
    parallel: Parallel = None,
    plan: Plan = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Cordon a host, and move all of its containers to others that can take them.

    Where each goes is decided by free memory, by what the hosts have, and by the labels transship.targets,
    transship.priority and transship.evacuate of the containers. Ctrl-C ends the watching, not the evacuation.
    """
    from agent.cli import evacuate as story

    names = tuple(name for part in to or () for name in part.split(",") if name)
    wanted = story.Wanted(host, names, deadline, parallel, plan, detach)
    control(context, as_json, lambda controller, out: story.evacuate(controller, out, wanted))


def give_back(
    context: typer.Context,
    host: HostArgument,
    deadline: Deadline = None,
    parallel: Parallel = None,
    plan: Plan = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Bring home the containers that an evacuation of this host has moved away.

    Those with the label transship.return=no stay where they are; so do those that were moved on by hand.
    """
    from agent.cli import evacuate as story

    wanted = story.Wanted(host, (), deadline, parallel, plan, detach)
    control(context, as_json, lambda controller, out: story.give_back(controller, out, wanted))


def cordon(context: typer.Context, host: HostArgument, as_json: Json = False) -> None:
    """Have a host take no containers any more; those that run there run on."""
    from agent.cli import evacuate as story

    control(context, as_json, lambda controller, out: story.cordon(controller, out, host, cordoned=True))


def uncordon(context: typer.Context, host: HostArgument, as_json: Json = False) -> None:
    """Have a host take containers again."""
    from agent.cli import evacuate as story

    control(context, as_json, lambda controller, out: story.cordon(controller, out, host, cordoned=False))
