"""`transship top`: what it shows of hosts that tell stories, over a real broker, on textual's own test terminal."""

import asyncio
import io
import json

import pytest
from rich.console import Console
from textual.widgets import DataTable

from agent.cli import top
from agent.cli.controller import Controller
from agent.cli.output import Out
from agent.cli.top import Top
from protocol.status import Phase
from tests.contract.cli_support import PATIENCE, held
from tests.contract.stories import StoryHost, container


async def until(app: Top, table: str, *words: str) -> list[list[str]]:
    """Wait until each of these stands in a table; its cells."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found: DataTable[object] = app.query_one(f"#{table}", DataTable)
            rows = [[str(cell) for cell in found.get_row_at(at)] for at in range(found.row_count)]
            text = " ".join(cell for row in rows for cell in row)
            if all(word in text for word in words):
                return rows
            await asyncio.sleep(0.02)


async def test_hosts_containers_and_a_move_show_as_they_change(controller: Controller, node_a: StoryHost) -> None:
    app = Top(controller)
    async with app.run_test(size=(160, 50)) as pilot:
        await until(app, "hosts", "node-a", "node-b", "online", "28.5.2")
        assert [row[:2] for row in await until(app, "containers", "web", "db", "cache")] == [
            ["node-a", "db"],
            ["node-a", "web"],
            ["node-b", "cache"],
        ]
        async with Controller(node_a.settings) as other:
            await held(other, node_a, Phase.FROZEN)
        await until(app, "moves", "web", "frozen")
        await until(app, "containers", "to node-b: frozen")
        node_a.go.set()
        [row] = await until(app, "moves", "done")
        assert row[-1].endswith("ms"), "the blackout is said"
        assert "█" in row[-2]

        await pilot.press("slash", *"cach")
        async with asyncio.timeout(PATIENCE):
            while len(await until(app, "containers", "cache")) > 1:
                await pilot.pause(0.02)
        await pilot.press("escape")
        await until(app, "containers", "db", "cache")
        await pilot.press("q")
    assert app.failure is None


async def test_a_name_is_text_and_what_is_gone_goes(controller: Controller, node_a: StoryHost) -> None:
    hostile = "[bold red]x[/] [@click=app.quit]y[/]"
    app = Top(controller)
    async with app.run_test(size=(160, 50)):
        await until(app, "containers", "web")
        one = container("node-a", hostile, 9).model_copy(update={"image": "[/nonsense]"})
        topic = f"transship/v1/hosts/node-a/containers/{one.id}"
        node_a.broker.publish_retained(topic, one)
        await until(app, "containers", hostile, "[/nonsense]")
        node_a.broker.clear(topic)
        async with asyncio.timeout(PATIENCE):
            while any(hostile in row for row in await until(app, "containers", "web")):
                await asyncio.sleep(0.02)


async def test_where_there_is_no_terminal_it_is_said_once(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await top.top(controller, Out(as_json=True)) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one.get("host") for one in said} == {"node-a", "node-b"}
    out = Out()
    out.console = Console(file=(text := io.StringIO()), width=200)  # type: ignore[misc]
    assert await top.top(controller, out) == 0
    for word in ("node-a", "web", "cache", "no migrations"):
        assert word in text.getvalue()
