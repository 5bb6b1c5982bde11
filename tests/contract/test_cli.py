"""The command line against a real broker and hosts that tell stories: what a person sees, what a script gets."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from agent.base.errors import AgentError, Refused
from agent.cli import commands, listing, migrate
from agent.cli.controller import Controller, NoAnswer
from agent.cli.migrate import Wanted
from agent.cli.output import FAILED, IN_DOUBT, NO_BROKER, OK, REFUSED, Out
from agent.doors.mqtt_link import BrokerUnavailable
from protocol import topics
from protocol.commands import Migrate, Ping, ReplyKind
from protocol.errors import ErrorCode
from protocol.status import HostStatus, MigrationStatus, Phase
from tests.contract.conftest import Mosquitto, Stranger
from tests.contract.stories import StoryHost, container

Connect = Callable[..., AbstractAsyncContextManager[Stranger]]
PATIENCE = 20.0


@pytest.fixture
def node_a(mosquitto: Mosquitto) -> StoryHost:
    return StoryHost("node-a", mosquitto.settings, [container("node-a", "web", 1), container("node-a", "db", 2)])


@pytest.fixture
async def hosts(mosquitto: Mosquitto, node_a: StoryHost) -> AsyncIterator[None]:
    node_b = StoryHost("node-b", mosquitto.settings, [container("node-b", "cache", 3)])
    async with node_a.running(), node_b.running():
        yield


@pytest.fixture
async def controller(mosquitto: Mosquitto, hosts: None) -> AsyncIterator[Controller]:
    async with Controller(mosquitto.settings) as controller:
        yield controller


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def moved(controller: Controller, **wanted: Any) -> int:
    return await migrate.migrate(
        controller, Out(as_json=True), Wanted(**{"container": "web", "to": "node-b", **wanted})
    )


async def refusal(controller: Controller, **wanted: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        await moved(controller, **wanted)
    return caught.value


# --- the controller


async def test_hosts_and_containers_are_read_at_once(controller: Controller) -> None:
    assert [one.host for one in await controller.hosts()] == ["node-a", "node-b"]
    assert [one.name for one in await controller.containers()] == ["db", "web", "cache"]
    assert [one.name for one in await controller.containers("node-b")] == ["cache"]
    assert await controller.migrations() == []


async def test_five_thousand_containers_are_all_read(mosquitto: Mosquitto) -> None:
    crowd = [container("node-a", f"c{number}").model_copy(update={"id": f"{number:064x}"}) for number in range(5000)]
    async with StoryHost("node-a", mosquitto.settings, crowd).running(), Controller(mosquitto.settings) as controller:
        assert len(await controller.containers()) == 5000


async def test_what_another_version_says_is_left_out_and_named(
    controller: Controller, mosquitto: Mosquitto, stranger: Connect
) -> None:
    async with stranger(mosquitto) as client:
        await client.send(topics.host_status("node-z"), {"version": 9, "host": "node-z"}, retain=True)
    assert [one.host for one in await controller.hosts()] == ["node-a", "node-b"]
    assert controller.unreadable == [topics.host_status("node-z")]


async def test_command_is_asked_and_answered(controller: Controller) -> None:
    reply = await controller.ask("node-a", Ping(id="c-1"))
    assert (reply.kind, reply.host, reply.command, reply.agent_version) == (
        ReplyKind.FINISHED,
        "node-a",
        "c-1",
        "0.1.0",
    )


async def test_long_command_gets_two_replies(controller: Controller) -> None:
    command = Migrate(id="c-1", container="web", to="node-b")
    replies = [reply async for reply in controller.command("node-a", command)]
    assert [reply.kind for reply in replies] == [ReplyKind.ACCEPTED, ReplyKind.FINISHED]
    assert replies[1].report is not None


async def test_host_that_nobody_listens_for_is_refused_at_once(controller: Controller) -> None:
    with pytest.raises(Refused, match="no agent of node-x") as caught:
        await controller.ask("node-x", Ping(id="c-1"))
    assert caught.value.code is ErrorCode.HOST_OFFLINE


async def test_silent_host_is_given_up(controller: Controller, mosquitto: Mosquitto, stranger: Connect) -> None:
    async with stranger(mosquitto) as client:
        await client.subscribe(topics.command("node-x"))
        with pytest.raises(NoAnswer, match="node-x did not answer within 1 s"):
            await controller.ask("node-x", Ping(id="c-1"), patience=1)


async def test_command_for_a_host_that_is_away_expires_at_the_broker(mosquitto: Mosquitto, node_a: StoryHost) -> None:
    async with node_a.running():
        pass
    async with Controller(mosquitto.settings) as controller:
        with pytest.raises(NoAnswer):
            await controller.ask("node-a", Ping(id="c-1"), patience=1)
        async with node_a.running():
            await controller.ask("node-a", Ping(id="c-2"))
    assert [one.id for one in node_a.commands] == ["c-2"]


async def test_no_broker_is_an_error_with_a_hint(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    with pytest.raises(BrokerUnavailable, match="Connection refused") as caught:
        async with Controller(mosquitto.settings):
            raise AssertionError
    assert "is the broker running" in caught.value.hint


async def test_broker_that_stays_away_is_given_up(
    controller: Controller, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.controller.AWAY_SECONDS", 0.1)
    monkeypatch.setattr("agent.cli.controller.PAUSE_SECONDS", 0.1)
    mosquitto.stop()
    watching = controller.watch_migration("m-0123456789abcdef", "node-a")
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(anext(watching), PATIENCE)


# --- migrate


async def test_migrate_finds_the_host_and_tells_how_it_went(
    controller: Controller, capsys: pytest.CaptureFixture[str], node_a: StoryHost
) -> None:
    node_a.pace = 0.02
    assert await moved(controller, keep_source=True, tcp="close", max_blackout_ms=500) == OK
    [command] = node_a.commands
    assert isinstance(command, Migrate)
    assert (command.container, command.to, command.source, command.tcp) == ("web", "node-b", "keep", "close")
    accepted, *statuses, result = lines(capsys)
    assert accepted["type"] == "accepted"
    assert {"copying", "frozen", "running"} <= {one["phase"] for one in statuses}
    assert result["type"] == "result"
    assert (result["ok"], result["exit_code"], result["migration"]) == (True, 0, accepted["migration"])
    assert result["blackout_ms"] == result["report"]["blackout_ms"]


async def test_migrate_by_the_beginning_of_an_id(controller: Controller, node_a: StoryHost) -> None:
    assert await moved(controller, container="0202") == OK
    [command] = node_a.commands
    assert isinstance(command, Migrate)
    assert command.container == "db"


async def test_failed_migrate_says_that_the_container_runs_on(
    controller: Controller, capsys: pytest.CaptureFixture[str], node_a: StoryHost
) -> None:
    node_a.fails_at = Phase.PREPARED
    assert await moved(controller) == FAILED
    result = lines(capsys)[-1]
    assert (result["ok"], result["phase"], result["error"]["code"]) == (False, "rolled-back", "restore-failed")
    assert result["error"]["consequence"] == "taken-back"


async def test_migrate_whose_last_reply_is_lost_ends_by_the_retained_status(
    controller: Controller, node_a: StoryHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LAST_REPLY_SECONDS", 0.05)
    node_a.lose_replies = True
    assert await moved(controller) == OK
    node_a.fails_at = Phase.FROZEN
    assert await moved(controller) == FAILED


async def test_migrate_goes_on_through_a_restart_of_the_broker(
    controller: Controller, mosquitto: Mosquitto, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COPYING
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(moved(controller))
        await node_a.held.wait()
        mosquitto.stop(forget=True)
        while node_a.broker.connected:
            await asyncio.sleep(0.005)
        node_a.go.set()
        mosquitto.start()
        assert await task == OK
    assert lines(capsys)[-1]["ok"] is True


async def test_detached_migrate_does_not_wait(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COPYING
    assert await moved(controller, detach=True) == OK
    assert [one["type"] for one in lines(capsys)] == ["accepted"]
    node_a.go.set()


async def test_migrate_that_takes_too_long_is_in_doubt_for_a_script(controller: Controller, node_a: StoryHost) -> None:
    node_a.hold = Phase.COPYING
    error = await refusal(controller, timeout=0.3)
    assert "goes on" in error.message
    assert Out(as_json=True).error(error.info()) == IN_DOUBT
    node_a.go.set()


@pytest.mark.parametrize(
    ("wanted", "code", "said", "hint"),
    [
        (
            {"container": "wep"},
            ErrorCode.NO_SUCH_CONTAINER,
            "no host has a container wep",
            "did you mean web on node-a",
        ),
        ({"source": "node-x"}, ErrorCode.NO_SUCH_HOST, "there is no host node-x", "known hosts: node-a, node-b"),
        ({"source": "node-b"}, ErrorCode.NO_SUCH_CONTAINER, "there is no container web on node-b", ""),
        ({"to": "node-a"}, ErrorCode.SAME_HOST, "web is on node-a already", ""),
        ({"strategy": "warm"}, ErrorCode.BAD_COMMAND, 'strategy is "warm": it must be auto or cold', ""),
        ({"to": "Node B"}, ErrorCode.BAD_COMMAND, 'to is "Node B"', ""),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_migrate_is_refused_with_a_hint(
    controller: Controller, wanted: dict[str, Any], code: ErrorCode, said: str, hint: str
) -> None:
    error = await refusal(controller, **wanted)
    assert error.code is code
    assert said in error.message
    assert hint in error.hint
    assert Out(as_json=True).error(error.info()) == REFUSED


async def test_name_on_two_hosts_is_refused_and_from_chooses(controller: Controller, mosquitto: Mosquitto) -> None:
    twin = StoryHost("node-c", mosquitto.settings, [container("node-c", "web", 9, "exited")])
    async with twin.running():
        error = await refusal(controller)
        assert "2 containers are meant" in error.message
        assert "web (010101010101, running) on node-a; web (090909090909, exited) on node-c" in error.hint
        assert await moved(controller, source="node-a") == OK
    error = await refusal(controller, container="0909")
    assert (error.code, error.message) == (ErrorCode.HOST_OFFLINE, "node-c, which has web, is offline")


# --- the others


async def test_hosts_for_a_program_and_for_a_person(
    controller: Controller, capsys: pytest.CaptureFixture[str], mosquitto: Mosquitto
) -> None:
    async with StoryHost("node-c", mosquitto.settings).running():
        pass
    assert await listing.hosts(controller, Out(as_json=True)) == OK
    found = [HostStatus.model_validate(one) for one in lines(capsys)]
    assert [(one.host, one.online) for one in found] == [("node-a", True), ("node-b", True), ("node-c", False)]
    assert await listing.hosts(controller, Out()) == OK
    text = capsys.readouterr().out
    assert "28.5.2" in text
    assert "offline" in text


async def test_ps_of_an_unknown_host_is_refused(controller: Controller) -> None:
    with pytest.raises(Refused, match="there is no host node-x"):
        await listing.ps(controller, Out(), "node-x")


async def test_migrations_show_why_one_needs_a_person(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COMMITTED
    node_a.doubt = "node-b has not confirmed"
    assert await moved(controller, detach=True) == OK
    async with asyncio.timeout(PATIENCE):
        await node_a.held.wait()
    capsys.readouterr()
    assert await listing.migrations(controller, Out(as_json=True)) == OK
    [one] = lines(capsys)
    assert one.pop("doubt") == "node-b has not confirmed"
    assert MigrationStatus.model_validate(one).phase is Phase.COMMITTED
    assert await listing.migrations(controller, Out()) == OK
    assert "node-b has not confirmed" in capsys.readouterr().out
    node_a.go.set()


async def test_cancel_asks_the_source(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COPYING
    assert await moved(controller, detach=True) == OK
    [migration] = node_a.open
    async with asyncio.timeout(PATIENCE):
        await node_a.held.wait()
    assert await commands.cancel(controller, Out(as_json=True), migration, None) == OK
    assert node_a.commands[-1].kind == "cancel"
    node_a.go.set()
    async with asyncio.timeout(PATIENCE):
        while migration in node_a.open:
            await asyncio.sleep(0.005)
    with pytest.raises(Refused, match="is decided"):
        await commands.cancel(controller, Out(), migration, None)


@pytest.mark.parametrize("migration", ["m-0123456789abcdef", "nonsense"])
async def test_cancel_of_what_nobody_knows_is_refused(controller: Controller, migration: str) -> None:
    with pytest.raises(Refused) as caught:
        await commands.cancel(controller, Out(), migration, None)
    assert caught.value.hint


async def test_resolve_says_what_it_risks_and_is_not_done_unconfirmed(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COMMITTED
    node_a.doubt = "node-b has not confirmed"
    assert await moved(controller, detach=True) == OK
    [migration] = node_a.open
    async with asyncio.timeout(PATIENCE):
        await node_a.held.wait()
    with pytest.raises(Refused, match="not confirmed"):
        await commands.resolve(controller, Out(as_json=True), migration, "abort", None, sure=False)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "_confirmed", lambda: False)
        with pytest.raises(Refused, match="not confirmed"):
            await commands.resolve(controller, Out(), migration, "abort", None, sure=False)
    said = capsys.readouterr().err
    assert "node-b has not confirmed" in said
    assert "If node-b already runs its copy, it runs twice." in said
    assert [one.kind for one in node_a.commands if one.kind == "resolve"] == []
    assert await commands.resolve(controller, Out(as_json=True), migration, "abort", None, sure=True) == OK
    assert node_a.commands[-1].kind == "resolve"
    node_a.go.set()


async def test_resolve_goes_to_the_target_where_the_source_is_gone(
    mosquitto: Mosquitto, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    node_a.hold = Phase.COMMITTED
    node_b = StoryHost("node-b", mosquitto.settings)
    async with node_b.running(), Controller(mosquitto.settings) as controller:
        async with node_a.running():
            assert await moved(controller, detach=True) == OK
            async with asyncio.timeout(PATIENCE):
                await node_a.held.wait()
            [migration] = node_a.open
        assert await commands.resolve(controller, Out(as_json=True), migration, "commit", None, sure=True) == OK
    assert node_b.commands[-1].kind == "resolve"


async def test_resolve_of_what_has_ended_is_refused(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    assert await moved(controller) == OK
    migration = lines(capsys)[-1]["migration"]
    with pytest.raises(Refused, match="has ended as done"):
        await commands.resolve(controller, Out(), migration, "commit", None, sure=True)


async def test_events_are_shown_as_they_come(
    controller: Controller, node_a: StoryHost, capsys: pytest.CaptureFixture[str]
) -> None:
    watching = asyncio.create_task(listing.events(controller, Out(as_json=True), "node-a", follow=True, seconds=0))
    async with asyncio.timeout(PATIENCE):
        while not (seen := capsys.readouterr().out):
            node_a.event("die", exit_code="137")
            await asyncio.sleep(0.01)
    watching.cancel()
    event = json.loads(seen.splitlines()[0])
    assert (event["kind"], event["detail"]) == ("die", {"exit_code": "137"})
    assert await listing.events(controller, Out(), None, follow=False, seconds=0.01) == OK


# --- the program itself


def program(mosquitto: Mosquitto, *words: str) -> list[str]:
    return [sys.executable, "-m", "agent.cli.main", "--broker", f"127.0.0.1:{mosquitto.port}", "--no-tls", *words]


async def ran(*argv: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_program_moves_a_container_and_prints_plain_lines_into_a_pipe(mosquitto: Mosquitto, hosts: None) -> None:
    code, out, err = await ran(*program(mosquitto, "migrate", "web", "--to", "node-b"))
    assert (code, err) == (0, "")
    assert "web: node-a -> node-b: done" in out
    assert "blackout: " in out
    assert "\x1b" not in out


async def test_program_without_broker_ends_with_4(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    code, out, err = await ran(*program(mosquitto, "ps"))
    assert (code, out) == (NO_BROKER, "")
    assert "Connection refused" in err
    code, out, _ = await ran(*program(mosquitto, "ps", "--json"))
    assert code == NO_BROKER
    assert json.loads(out)["error"]["code"] == "broker-unavailable"


async def test_wrong_usage_is_json_too(mosquitto: Mosquitto) -> None:
    code, out, _ = await ran(*program(mosquitto, "migrate", "web", "--json"))
    assert code == REFUSED
    assert json.loads(out)["error"]["code"] == "bad-command"


async def test_shell_is_offered_commands_hosts_and_containers(mosquitto: Mosquitto, hosts: None) -> None:
    async def offered(*words: str) -> str:
        line = ["transship", *words]
        environment = {
            "_TRANSSHIP_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(line),
            "COMP_CWORD": str(len(line) - 1),
            "TRANSSHIP_BROKER__HOST": "127.0.0.1",
            "TRANSSHIP_BROKER__PORT": str(mosquitto.port),
            "TRANSSHIP_BROKER__TLS": "false",
        }
        _, out, err = await ran(sys.executable, "-m", "agent.cli.main", environment=environment)
        assert err == ""
        return out

    assert set((await offered("mig")).split()) == {"migrate", "migrations"}
    assert set((await offered("migrate", "web", "--to", "node")).split()) == {"node-a", "node-b"}
    assert (await offered("migrate", "w")).split() == ["web"]
    mosquitto.stop()
    assert (await offered("migrate", "w")).split() == []


async def test_ctrl_c_ends_the_watching_and_says_how_to_cancel(
    mosquitto: Mosquitto, hosts: None, node_a: StoryHost
) -> None:
    node_a.hold = Phase.COPYING
    process = await asyncio.create_subprocess_exec(
        *program(mosquitto, "migrate", "web", "--to", "node-b", "--json"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while json.loads(await process.stdout.readline()).get("phase") != "copying":
            pass
        process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).splitlines()
        assert await process.wait() == 130
    said = json.loads(rest[-1])
    assert said["interrupted"] is True
    assert f"transship cancel {said['migration']}" in said["message"]
    assert said["migration"] in node_a.open
    node_a.go.set()


async def test_terminal_gets_the_live_view_and_the_picture(
    mosquitto: Mosquitto, hosts: None, node_a: StoryHost, tmp_path: Path
) -> None:
    node_a.pace = 0.1
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *program(mosquitto, "migrate", "web", "--to", "node-b"),
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    seen = await asyncio.to_thread(_read_all, ours)
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 0
    assert "its memory goes over" in seen
    assert "✔" in seen
    assert "blackout" in seen


def _read_all(terminal: int) -> str:
    text = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            chunk = b""
        if not chunk:
            os.close(terminal)
            return text.decode(errors="replace")
        text += chunk
