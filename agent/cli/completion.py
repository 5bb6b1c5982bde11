"""What the shell offers on TAB beyond the words themselves: hosts, containers, migrations, as the broker has them now.

Silent and bounded: a broker that is away must cost whoever presses TAB a moment, and no traceback.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from agent.cli.controller import Controller

SECONDS = 2.0

Offer = list[tuple[str, str]]
"""Words, each with a help text."""


def hosts(context: typer.Context, incomplete: str) -> Offer:
    async def ask(controller: "Controller") -> Offer:
        return [(one.host, "" if one.online else "offline") for one in await controller.hosts()]

    return _offered(context, incomplete, ask)


def containers(context: typer.Context, incomplete: str) -> Offer:
    async def ask(controller: "Controller") -> Offer:
        return [(one.name, f"on {one.host}") for one in await controller.containers() if one.state == "running"]

    return _offered(context, incomplete, ask)


def migrations(context: typer.Context, incomplete: str) -> Offer:
    async def ask(controller: "Controller") -> Offer:
        found = await controller.migrations()
        return [(one.id, f"{one.container} to {one.target}: {one.phase}") for one in found if one.report is None]

    return _offered(context, incomplete, ask)


def cancellable(context: typer.Context, incomplete: str) -> Offer:
    """Migrations that go on, and evacuations."""

    async def ask(controller: "Controller") -> Offer:
        moves = [
            (one.id, f"{one.container} to {one.target}") for one in await controller.migrations() if not one.report
        ]
        found = [one for one in await controller.evacuations() if one.state == "running"]
        return [*moves, *((one.id, f"evacuation of {one.host}") for one in found)]

    return _offered(context, incomplete, ask)


def _offered(
    context: typer.Context, incomplete: str, ask: Callable[["Controller"], Awaitable[Iterable[tuple[str, str]]]]
) -> Offer:
    from agent.cli.controller import Controller
    from agent.cli.settings import Options, load

    said = context.parent.params if context.parent else {}

    async def run() -> Offer:
        async with asyncio.timeout(SECONDS), Controller(load(Options(**said))) as controller:
            return [(word, text) for word, text in await ask(controller) if word.startswith(incomplete)]

    try:
        return asyncio.run(run())
    except Exception:  # nobody reads an error between two words
        return []
