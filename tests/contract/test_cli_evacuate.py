"""transship evacuate and return against a real broker: who is asked, what a person sees, what a script gets."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from agent.base.errors import AgentError
from agent.cli import commands, evacuate
from agent.cli.controller import Controller
from agent.cli.evacuate import Wanted
from agent.cli.leaving_view import LiveView, show_plan, show_result
from agent.cli.output import FAILED, IN_DOUBT, OK, Out
from agent.doors.mqtt import Answer
from protocol import topics
from protocol.base import utc_now
from protocol.commands import CancelEvacuation, Command, Cordon, Evacuate, ReplyKind, Return
from protocol.errors import Consequence, ErrorCode, ErrorInfo, Reason
from protocol.evacuation import EvacuationKind, EvacuationState, EvacuationStatus, Evacuee, EvacueeState, NotThere
from protocol.status import MigrationReport, MigrationStatus, Phase, PhaseTime
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost, container

ID = "e-0123456789abcdef"
TTY = ErrorInfo(code=ErrorCode.NOT_MIGRATABLE, message="it has a terminal", hint="run it without -t")
WHY_NOT = NotThere(host="node-c", reasons=(Reason(code=ErrorCode.HOST_OFFLINE, message="it is offline"),))


def evacuee(name: str, number: int, state: EvacueeState, **more: Any) -> Evacuee:
    return Evacuee(**{"container": name, "container_id": f"{number:02x}" * 32, "state": state, **more})


class Leaving(StoryHost):
    """A host that is emptied on paper."""

    lose_reply = False

    def status(self, state: EvacuationState, web: EvacueeState, **more: Any) -> EvacuationStatus:
        kind = EvacuationKind.RETURN if isinstance(self.commands[-1], Return) else EvacuationKind.EVACUATE
        self.sequence = getattr(self, "sequence", 0) + 1
        gone = {"to": "node-b", "why": "the most room", "not_there": (WHY_NOT,), "migration": "m-0123456789abcdef"}
        rows = [evacuee("web", 1, web, **gone, blackout_ms=210.0, total_ms=1500.0)]
        if kind is EvacuationKind.EVACUATE:
            rows.append(evacuee("tty", 2, EvacueeState.LEFT, error=TTY))
        return EvacuationStatus(
            id=ID,
            kind=kind,
            host=self.name,
            state=state,
            sequence=self.sequence,
            started_at=utc_now(),
            at=utc_now(),
            containers=tuple(rows),
        )

    async def _handle(self, command: Command, answer: Answer) -> None:
        if not isinstance(command, Evacuate | Return):
            await super()._handle(command, answer)
            return
        self.commands.append(command)
        if command.plan:
            await answer(self.reply(command, ReplyKind.ACCEPTED))
            plan = self.status(EvacuationState.PLANNED, EvacueeState.WAITING)
            await answer(self.reply(command, ReplyKind.FINISHED, evacuation=plan))
            return
        for state in (EvacueeState.WAITING, EvacueeState.MOVING):
            said = self.status(EvacuationState.RUNNING, state)
            self.broker.publish_retained(topics.evacuation(self.name), said)
            if state is EvacueeState.WAITING:
                await answer(self.reply(command, ReplyKind.ACCEPTED, evacuation=said))
            await asyncio.sleep(self.pace)
        last = self.status(EvacuationState.DONE, EvacueeState.MOVED)
        self.broker.publish_retained(topics.evacuation(self.name), last)
        if not self.lose_reply:
            await answer(self.reply(command, ReplyKind.FINISHED, evacuation=last))


@pytest.fixture
def node_a(mosquitto: Mosquitto) -> Leaving:
    return Leaving("node-a", mosquitto.settings, [container("node-a", "web", 1)], pace=0.1)


@pytest.fixture
def node_b(mosquitto: Mosquitto) -> Leaving:
    """It has one container whose home is node-a."""
    return Leaving("node-b", mosquitto.settings, [container("node-b", "guest", 4, home="node-a")], pace=0.1)


@pytest.fixture
async def hosts(node_a: Leaving, node_b: Leaving) -> AsyncIterator[None]:
    """In place of those of conftest.py: two of one name would take the broker's session from each other."""
    async with node_a.running(), node_b.running():
        yield


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_a_program_is_told_each_change_and_what_came_of_it(
    controller: Controller, node_a: Leaving, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = Wanted("node-a", to=("node-b",), deadline="5m", parallel=2)
    assert await evacuate.evacuate(controller, Out(as_json=True), wanted) == FAILED
    [command] = node_a.commands
    assert isinstance(command, Evacuate)
    assert (command.to, command.deadline_s, command.parallel, command.plan) == (("node-b",), 300.0, 2, False)
    accepted, *changes, result = lines(capsys)
    assert (accepted["type"], accepted["evacuation"], accepted["host"]) == ("accepted", ID, "node-a")
    assert [(one["container"], one["state"]) for one in changes] == [
        ("tty", "left"),
        ("web", "moving"),
        ("web", "moved"),
    ]
    assert (result["type"], result["ok"], result["exit_code"]) == ("result", False, FAILED)
    assert result["evacuations"][0]["containers"][1]["error"]["message"] == "it has a terminal"


async def test_without_a_terminal_it_is_a_line_a_change(
    controller: Controller, node_a: Leaving, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await evacuate.evacuate(controller, Out(), Wanted("node-a")) == FAILED
    said = capsys.readouterr().out
    assert "tty: is left here: it has a terminal" in said
    assert "web: to node-b as m-0123456789abcdef: the most room" in said
    assert "web: is on node-b, moved in 1.50 s, blackout 210 ms" in said
    assert "node-a: done after" in said
    assert "1 moved away, 1 left behind" in said
    assert "tty: hint: run it without -t" in said


async def test_it_ends_by_the_retained_status_where_the_reply_is_lost(controller: Controller, node_a: Leaving) -> None:
    node_a.lose_reply = True
    async with asyncio.timeout(20):
        assert await evacuate.evacuate(controller, Out(), Wanted("node-a")) == FAILED


async def test_a_plan_is_shown_with_its_reasons(
    controller: Controller, node_a: Leaving, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await evacuate.evacuate(controller, Out(), Wanted("node-a", plan=True)) == FAILED
    said = capsys.readouterr().out
    assert "the most room" in said
    assert "web not on node-c: it is offline" in said
    [command] = node_a.commands
    assert isinstance(command, Evacuate)
    assert command.plan


async def test_return_asks_those_that_have_something(
    controller: Controller, node_a: Leaving, node_b: Leaving, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await evacuate.give_back(controller, Out(as_json=True), Wanted("node-a")) == OK
    [command] = node_b.commands
    assert isinstance(command, Return)
    assert command.to == "node-a"
    assert node_a.commands == []
    assert lines(capsys)[-1]["ok"]
    assert await evacuate.give_back(controller, Out(as_json=True), Wanted("node-b")) == OK
    assert lines(capsys)[-1]["evacuations"] == []


async def test_cordon_and_cancel_are_told_to_the_host(controller: Controller, node_a: Leaving) -> None:
    assert await evacuate.cordon(controller, Out(), "node-a", cordoned=True) == OK
    assert await evacuate.cordon(controller, Out(), "node-a", cordoned=False) == OK
    assert await evacuate.evacuate(controller, Out(), Wanted("node-a", detach=True)) in (OK, FAILED)
    assert await commands.cancel(controller, Out(), ID, None) == OK
    first, second, _, last = node_a.commands
    assert isinstance(first, Cordon)
    assert isinstance(second, Cordon)
    assert (first.cordoned, second.cordoned) == (True, False)
    assert isinstance(last, CancelEvacuation)
    assert last.evacuation == ID


@pytest.mark.parametrize(("host", "code"), [("node-x", ErrorCode.NO_SUCH_HOST), ("Node_X", ErrorCode.NO_SUCH_HOST)])
async def test_an_unknown_host_is_refused(controller: Controller, host: str, code: ErrorCode) -> None:
    with pytest.raises(AgentError) as caught:
        await evacuate.evacuate(controller, Out(), Wanted(host))
    assert caught.value.code is code


async def test_an_unknown_evacuation_can_t_be_cancelled(controller: Controller) -> None:
    with pytest.raises(AgentError) as caught:
        await commands.cancel(controller, Out(), "e-ffffffffffffffff", None)
    assert caught.value.code is ErrorCode.NO_SUCH_EVACUATION


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90.0), ("5m", 300.0), ("1h", 3600.0), ("1.5", 1.5), (None, None)])
def test_a_time_is_read(text: str | None, wanted: float | None) -> None:
    assert evacuate.seconds(text) == wanted


@pytest.mark.parametrize("text", ["soon", "0", "-5", "5 minutes", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(AgentError) as caught:
        evacuate.seconds(text)
    assert caught.value.code is ErrorCode.BAD_COMMAND


def finished(*rows: Evacuee, state: EvacuationState = EvacuationState.DONE) -> EvacuationStatus:
    return EvacuationStatus(
        id=ID,
        kind=EvacuationKind.EVACUATE,
        host="node-a",
        state=state,
        sequence=1,
        started_at=utc_now(),
        at=utc_now(),
        containers=rows,
    )


def test_what_is_left_decides_about_the_exit_code() -> None:
    stranded = ErrorInfo(code=ErrorCode.STRANDED, message="x", consequence=Consequence.STRANDED)
    moved, stays = evacuee("web", 1, EvacueeState.MOVED), evacuee("db", 2, EvacueeState.STAYS)
    assert evacuate.code_of(finished(moved, stays)) == OK
    assert evacuate.code_of(finished(moved, evacuee("tty", 3, EvacueeState.LEFT, error=TTY))) == FAILED
    assert evacuate.code_of(finished(evacuee("bad", 3, EvacueeState.LEFT, error=stranded))) == IN_DOUBT
    assert evacuate.code_of(finished(evacuee("slow", 3, EvacueeState.MOVING))) == IN_DOUBT


def moving(phase: Phase, **more: Any) -> MigrationStatus:
    known = {"id": "m-0123456789abcdef", "container": "web", "container_id": "01" * 32, "source": "node-a"}
    times = {"started_at": utc_now(), "at": utc_now()}
    return MigrationStatus(**{**known, "target": "node-b", "phase": phase, "sequence": 1, **times, **more})


def test_what_has_moved_ends_as_a_picture_on_one_scale_of_time() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    out = Out()
    out.__dict__["console"] = console
    view = LiveView(out)
    began = utc_now()
    for number, name in enumerate(("first", "second")):
        phases = [PhaseTime(phase=phase, at_ms=at) for phase, at in ((Phase.COPYING, 0), (Phase.FROZEN, 500))]
        report = MigrationReport(phases=tuple(phases), total_ms=1000, blackout_ms=412)
        started = {"id": f"m-{number:016x}", "container": name, "started_at": began + timedelta(seconds=number)}
        view.moving(moving(Phase.DONE, report=report, **started))
    rows = [
        evacuee(name, number, EvacueeState.MOVED, to="node-b", migration=f"m-{number:016x}")
        for number, name in enumerate(("first", "second"))
    ]
    status = finished(*rows)
    assert not view.waits(status)
    show_result(out, [status], view.reports())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [first, second] = [line for line in lines if line.strip().endswith("412 ms")]
    assert first.count("█") == second.count("█") > 20
    assert first.rindex("█") + 1 == second.index("█"), "one begins where the other ends"
    assert any("2.00 s" in line and "blackout" in line for line in lines), "the scale is said"


def test_live_view_shows_every_container() -> None:
    out = Out()
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    out.__dict__["console"] = console
    view = LiveView(out)
    rows = [
        evacuee("web", 1, EvacueeState.MOVING, to="node-b", migration="m-0123456789abcdef"),
        evacuee("tty", 2, EvacueeState.LEFT, error=TTY),
        evacuee("db", 3, EvacueeState.MOVED, to="node-c", blackout_ms=210.0, total_ms=1500.0),
    ]
    view.begun("node-a", ID)
    running = finished(*rows, state=EvacuationState.RUNNING)
    view.changed(running)
    view.moving(moving(Phase.COPYING, bytes_sent=50, bytes_total=100, rate=10.0, eta_s=5.0))
    console.print(view._render())
    view.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("node-a", "2 of 3", "web", "node-b", "it has a terminal", "blackout 210 ms"):
        assert word in text
    assert "copying" in text
    assert "50 B of 100 B   10 B/s   5 s left" in text
    assert view.waits(running), "of db's move nothing was heard yet"
    show_plan(out, [finished()])
