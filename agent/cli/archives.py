"""The words for checkpoints, and their help; registered by main.py."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.running import CONTAINERS, HOSTS, Json, control

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
        str, typer.Option("--to", metavar="FILE|-|STORE", help="Where the archive goes; else the host's own folder.")
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
        str, typer.Argument(metavar="FILE|-|ID", help="An archive on this host, or one of a host's own.")
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
