"""A command that comes again is answered from the record, whatever happened meanwhile; nothing is done twice."""

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.base.errors import Refused
from agent.dispatcher import Dispatcher, digest
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from protocol.base import utc_now
from protocol.commands import Command, Limit, ListMigrations, NativeCreate, Ping, RemoveCheckpoint, Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.status import Phase

MIGRATION = "m-0123456789abcdef"


class Host:
    """What the dispatcher asks, counted; the journal is the real one."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        self.done: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.begun = asyncio.Event()

    def dispatcher(self) -> Dispatcher:
        async def limit(migration: str | None, bandwidth: int | None) -> None:
            self.done.append(f"limit {bandwidth}")

        async def create(container: object, name: str, *, leave_running: bool) -> None:
            self.begun.set()
            await self.go_on.wait()
            self.done.append(f"create {name}")

        async def find(name: str) -> object:
            return SimpleNamespace(name=name)

        def remove(checkpoint: str, *, force: bool) -> None:
            self.done.append(f"remove {checkpoint}")

        none = SimpleNamespace(open=tuple, limit=limit)
        host = SimpleNamespace(journal=self.journal, name="node-a", docker=SimpleNamespace(find=find))
        vault = SimpleNamespace(store=SimpleNamespace(remove=remove))
        parts: list[Any] = [host, None, none, none, vault, SimpleNamespace(create=create), None, None, None]
        return Dispatcher(*parts)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    found = Host(tmp_path)
    await found.journal.open()
    yield found
    await found.journal.close()


class Replies(list[Reply]):
    async def __call__(self, reply: Reply) -> None:
        self.append(reply)

    @property
    def kinds(self) -> list[ReplyKind]:
        return [reply.kind for reply in self]

    @property
    def code(self) -> ErrorCode:
        error = self[-1].error
        assert error is not None
        return error.code


async def asked(dispatcher: Dispatcher, command: Command) -> Replies:
    replies = Replies()
    await dispatcher.handle(command, replies)
    return replies


async def test_a_replay_gets_the_first_answer_and_nothing_is_done_again(host: Host) -> None:
    dispatcher, command = host.dispatcher(), Limit(id="c-1", bandwidth=5)
    first = await asked(dispatcher, command)
    again = await asked(dispatcher, command)
    after_restart = await asked(host.dispatcher(), command)
    assert first.kinds == [ReplyKind.FINISHED]
    assert again == first == after_restart
    assert host.done == ["limit 5"]


async def test_an_id_that_is_used_again_for_something_else_is_refused(host: Host) -> None:
    dispatcher = host.dispatcher()
    first = await asked(dispatcher, Limit(id="c-1", bandwidth=5))
    for other in (Limit(id="c-1", bandwidth=6), ListMigrations(id="c-1")):
        replies = await asked(dispatcher, other)
        assert replies.kinds == [ReplyKind.FAILED]
        assert replies.code is ErrorCode.BAD_COMMAND
    assert host.done == ["limit 5"]
    assert await asked(dispatcher, Limit(id="c-1", bandwidth=5)) == first, "the record is what it was"


async def test_a_later_expiry_makes_no_other_command_of_it(host: Host) -> None:
    dispatcher, at = host.dispatcher(), utc_now()
    for minutes in (1, 2):
        replies = await asked(dispatcher, Limit(id="c-1", bandwidth=5, expires_at=at + timedelta(minutes=minutes)))
        assert replies.kinds == [ReplyKind.FINISHED]
    assert host.done == ["limit 5"]


async def test_a_replay_while_it_is_done_waits_for_the_same_answer(host: Host) -> None:
    host.go_on.clear()
    dispatcher = host.dispatcher()
    command = NativeCreate(id="c-1", container="web", name="one")
    first, second = Replies(), Replies()
    doing = asyncio.create_task(dispatcher.handle(command, first))
    await asyncio.wait_for(host.begun.wait(), 5)
    await dispatcher.handle(command, second)
    assert second.kinds == [ReplyKind.ACCEPTED]
    host.go_on.set()
    await asyncio.wait_for(doing, 5)
    assert first.kinds == second.kinds == [ReplyKind.ACCEPTED, ReplyKind.FINISHED]
    assert host.done == ["create one"]


async def test_one_that_a_restart_has_interrupted_is_answered_and_not_begun_again(host: Host) -> None:
    command = RemoveCheckpoint(id="c-1", checkpoint="0123456789ab")
    await host.journal.begin_command("c-1", digest(command))
    replies = await asked(host.dispatcher(), command)
    assert replies.kinds == [ReplyKind.FAILED]
    assert replies.code is ErrorCode.INTERNAL
    assert host.done == []


@pytest.mark.parametrize(("phase", "kind"), [(Phase.DONE, ReplyKind.FINISHED), (Phase.COMMITTED, ReplyKind.FAILED)])
async def test_a_migration_that_outlived_a_restart_is_said_as_it_ended(
    host: Host, phase: Phase, kind: ReplyKind
) -> None:
    command = Limit(id="c-1", bandwidth=5)
    first = host.dispatcher()
    await asked(first, command)
    host.journal._open_db.execute("UPDATE commands SET reply=NULL")
    entry = Run.entry(MIGRATION, Role.SOURCE, "web", "node-b", {})
    await host.journal.put(dataclasses.replace(entry, phase=phase))
    await host.journal.link_command("c-1", MIGRATION)
    replies = await asked(host.dispatcher(), command)
    assert replies.kinds == [kind]
    assert replies[0].migration == MIGRATION


async def test_what_was_begun_in_time_is_answered_also_after_its_expiry(host: Host) -> None:
    """The door asks for the record before it says that a command has expired."""
    dispatcher, replies = host.dispatcher(), Replies()
    command = Limit(id="c-1", bandwidth=5, expires_at=utc_now())
    assert not await dispatcher.recorded(command, replies)
    assert replies == []
    await asked(dispatcher, command)
    assert await dispatcher.recorded(command, replies)
    assert replies.kinds == [ReplyKind.FINISHED]


async def test_a_journal_of_an_agent_before_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with sqlite3.connect(file) as old:
        old.execute("CREATE TABLE commands (id TEXT PRIMARY KEY, at TEXT NOT NULL, migration TEXT, reply TEXT)")
        reply = Reply(kind=ReplyKind.FINISHED, host="node-a", command="c-1", at=utc_now())
        old.execute("INSERT INTO commands VALUES ('c-1', '2026', NULL, ?)", (reply.model_dump_json(),))
    old.close()
    found = Host(tmp_path)
    await found.journal.open()
    try:
        assert (await asked(found.dispatcher(), Ping(id="c-1"))) == [reply]
        assert (await asked(found.dispatcher(), Limit(id="c-2", bandwidth=1))).kinds == [ReplyKind.FINISHED]
    finally:
        await found.journal.close()


async def test_a_command_that_can_t_be_noted_down_is_refused_and_not_done(host: Host) -> None:
    """With no room in the journal it would be done again when it comes again."""
    await host.journal._call(lambda: host.journal._open_db.execute("PRAGMA max_page_count=1"))
    many = [Limit(id=f"c-{number}-{'x' * 40}", bandwidth=number) for number in range(1, 500)]
    answers: list[Reply] = []

    async def answer(reply: Reply) -> None:
        answers.append(reply)

    with pytest.raises(Refused, match="can't be noted down") as refused:
        for command in many:
            await host.dispatcher().handle(command, answer)
    assert refused.value.code is ErrorCode.NO_SPACE
    assert refused.value.consequence is Consequence.UNTOUCHED
    assert len(answers) == len(host.done) < len(many)
