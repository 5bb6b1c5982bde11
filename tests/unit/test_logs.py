"""Log lines: JSON where no terminal reads them; each line of a move carries its id, whichever task writes it."""

import asyncio
import io
import json
import logging

import pytest

from agent.base import tracing
from agent.logs import JsonLines, PlainLines, wants_json

MOVE = "m-0123456789abcdef"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "said", "as_json"),
    [
        (Terminal(), None, False),
        (io.StringIO(), None, True),
        (Terminal(), True, True),
        (io.StringIO(), False, False),
    ],
)
def test_json_goes_where_no_terminal_reads_unless_the_settings_say(
    stream: io.StringIO, said: bool | None, as_json: bool
) -> None:
    assert wants_json(stream, said) is as_json


def line(formatter: logging.Formatter, message: str) -> str:
    return formatter.format(logging.LogRecord("agent.source", logging.INFO, "", 0, message, None, None))


def test_a_line_names_the_migration_it_is_about_and_no_other() -> None:
    assert "migration" not in json.loads(line(JsonLines(), "up"))
    with tracing.working_for(MOVE):
        assert json.loads(line(JsonLines(), "frozen"))["migration"] == MOVE
        assert line(PlainLines(), "frozen").endswith(f": {MOVE} frozen")
        assert line(PlainLines(), f"{MOVE} frozen").count(MOVE) == 1
    assert "migration" not in json.loads(line(JsonLines(), "up"))
    assert line(PlainLines(), "up").endswith("agent.source: up")


async def test_tasks_of_a_move_work_for_it_and_others_do_not() -> None:
    async def said() -> str:
        await asyncio.sleep(0)
        return tracing.migration()

    async def move(migration: str) -> list[str]:
        tracing.works_for(migration)
        return await asyncio.gather(asyncio.create_task(said()), said())

    both = await asyncio.gather(*(asyncio.create_task(move(each)) for each in (MOVE, "m-other")))
    assert both == [[MOVE, MOVE], ["m-other", "m-other"]]
    assert await said() == ""


def test_what_a_container_is_called_can_not_make_a_line_of_its_own() -> None:
    text = line(JsonLines(), 'moved a"\n{"at": "forged"}')
    assert "\n" not in text
    assert json.loads(text)["message"] == 'moved a"\n{"at": "forged"}'
