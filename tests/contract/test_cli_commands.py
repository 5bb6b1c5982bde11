"""Every command but migrate at a real broker: what a person sees of hosts that tell stories, what a script gets."""

import asyncio
import json

import pytest

from agent.base.errors import Refused
from agent.cli import commands, listing
from agent.cli.controller import Controller
from agent.cli.output import OK, Out
from protocol.status import HostStatus, MigrationStatus, Phase
from tests.contract.cli_support import PATIENCE, held, lines, moved
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost


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
    node_a.doubt = "node-b has not confirmed"
    await held(controller, node_a, Phase.COMMITTED)
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
    migration = await held(controller, node_a, Phase.COPYING)
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
    node_a.doubt = "node-b has not confirmed"
    migration = await held(controller, node_a, Phase.COMMITTED)
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
    node_b = StoryHost("node-b", mosquitto.settings)
    async with node_b.running(), Controller(mosquitto.settings) as controller:
        async with node_a.running():
            migration = await held(controller, node_a, Phase.COMMITTED)
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
