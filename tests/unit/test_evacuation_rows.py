"""What follows from how a move of an evacuation came out; and the files that outlive the agent."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.migration import cordon, homes
from agent.migration.cordon import Cordon
from agent.migration.host import Host
from agent.migration.journal import Journal
from agent.shutdown.evacuation import Around, migration_id
from agent.shutdown.evacuations import FILE, Evacuations, evacuation_id
from agent.shutdown.places import Leaving
from agent.shutdown.planner import Placement
from agent.shutdown.row import BUSY_SECONDS, OF_TARGET, Row
from protocol.base import utc_now
from protocol.errors import Consequence, ErrorCode, ErrorInfo, Reason
from protocol.evacuation import EvacuationKind, EvacuationState, EvacuationStatus, Evacuee, EvacueeState
from tests.unit import moves

if TYPE_CHECKING:
    from agent.base.shell import Shell
    from agent.doors.docker import Docker
    from agent.migration.sources import Peers, Sources
    from agent.shutdown.survey import Hosts

ID = "8f" * 32


def row(**more: Any) -> Row:
    shown = Evacuee(container="web", container_id=ID, state=EvacueeState.MOVING, to="host-b")
    return Row(Leaving(ID, "web", **more), shown)


def failure(code: ErrorCode, consequence: Consequence = Consequence.UNTOUCHED) -> ErrorInfo:
    return ErrorInfo(code=code, message=f"because of {code}", consequence=consequence)


@pytest.mark.parametrize("code", sorted(OF_TARGET))
def test_what_a_target_refuses_is_tried_elsewhere(code: ErrorCode) -> None:
    one = row()
    one.came_to_grief(failure(code), 0)
    assert one.state is EvacueeState.WAITING
    [(host, reason)] = one.leaving.refused
    assert (host, reason.code) == ("host-b", code)


def test_what_was_taken_back_is_tried_there_once_more_and_then_elsewhere() -> None:
    one, error = row(), failure(ErrorCode.RESTORE_FAILED, Consequence.TAKEN_BACK)
    one.came_to_grief(error, 0)
    assert (one.state, one.leaving.refused) == (EvacueeState.WAITING, ())
    one.came_to_grief(error, 0)
    assert [host for host, _ in one.leaving.refused] == ["host-b"]
    nowhere = Reason(code=ErrorCode.RESTORE_FAILED, message="no host can take it")
    one.planned(Placement(one.leaving, left=nowhere), final=False)
    assert one.state is EvacueeState.WAITING, "another move may end, and make room"
    one.planned(Placement(one.leaving, left=nowhere), final=True)
    assert one.state is EvacueeState.LEFT
    assert one.shown.error == error, "what it came to grief with says more"


@pytest.mark.parametrize(
    ("code", "consequence"),
    [
        (ErrorCode.NOT_MIGRATABLE, Consequence.UNTOUCHED),
        (ErrorCode.CANCELLED, Consequence.TAKEN_BACK),
        (ErrorCode.CONTAINER_GONE, Consequence.TAKEN_BACK),
        (ErrorCode.STRANDED, Consequence.STRANDED),
        (ErrorCode.LOST, Consequence.STRANDED),
    ],
)
def test_what_no_other_host_would_change_is_left(code: ErrorCode, consequence: Consequence) -> None:
    one = row()
    one.came_to_grief(failure(code, consequence), 0)
    assert one.state is EvacueeState.LEFT
    assert one.shown.error is not None
    assert one.shown.error.code is code


def test_who_is_turned_away_waits_for_a_place_but_not_for_ever() -> None:
    one = row()
    one.came_to_grief(failure(ErrorCode.BUSY), 100)
    assert (one.state, one.busy) == (EvacueeState.WAITING, True)
    one.came_to_grief(failure(ErrorCode.BUSY), 100 + BUSY_SECONDS + 1)
    assert one.state is EvacueeState.LEFT


def test_every_reason_of_its_own_host_is_told() -> None:
    reasons = tuple(Reason(code=ErrorCode.NOT_MIGRATABLE, message=text) for text in ("a terminal", "a device"))
    one = row(against=reasons)
    one.planned(Placement(one.leaving, left=reasons[0]), final=True)
    assert one.shown.error is not None
    assert one.shown.error.reasons == reasons


def test_ids_are_made_from_what_they_are_for() -> None:
    first = evacuation_id("c-1")
    assert first == "e-" + hashlib.sha256(b"c-1").hexdigest()[:16] == evacuation_id("c-1")
    ids = {migration_id(evacuation, ID, attempt) for evacuation in (first, evacuation_id("c-2")) for attempt in (1, 2)}
    assert len(ids) == 4
    assert migration_id(first, ID, 1) in ids


def test_the_cordon_is_durable_and_one_of_a_boot_ends_with_it(tmp_path: Path) -> None:
    assert cordon.find(tmp_path) is None
    assert cordon.against(tmp_path, "host-a") == ()
    cordon.put(tmp_path, Cordon("on request", "now"))
    [reason] = cordon.against(tmp_path, "host-a")
    assert reason.code is ErrorCode.HOST_CORDONED
    assert "on request" in reason.message
    assert "transship uncordon host-a" in reason.hint
    cordon.put(tmp_path, Cordon("shutdown", "now", boot=cordon.boot()))
    assert cordon.find(tmp_path) is not None
    cordon.put(tmp_path, replace(Cordon("shutdown", "now"), boot="another"))
    assert cordon.find(tmp_path) is None
    (tmp_path / cordon.FILE).write_text("{")
    assert cordon.find(tmp_path) is not None, "what can't be read takes nothing"
    cordon.lift(tmp_path)
    cordon.lift(tmp_path)
    assert cordon.find(tmp_path) is None


def test_homes_are_remembered_until_the_container_is_gone(tmp_path: Path) -> None:
    assert homes.of(tmp_path, ID) == ""
    homes.remember(tmp_path, ID, "host-a")
    assert homes.of(tmp_path, ID) == "host-a"
    assert homes.of(tmp_path, ID) == "host-a"
    homes.forget(tmp_path, ID)
    homes.forget(tmp_path, ID)
    assert homes.of(tmp_path, ID) == ""


# --- what an agent before this one has left


class Told:
    """Who is told of evacuations."""

    def __init__(self) -> None:
        self.statuses: list[EvacuationStatus] = []
        self.ends: list[tuple[str, EvacuationStatus]] = []

    async def evacuation(self, status: EvacuationStatus) -> None:
        self.statuses.append(status)

    def cordoned(self) -> None:
        """Nobody asks."""

    async def ended(self, command: str, status: EvacuationStatus) -> None:
        self.ends.append((command, status))


def status_of(state: EvacuationState, *rows: Evacuee) -> dict[str, Any]:
    return EvacuationStatus(
        id="e-0123456789abcdef",
        kind=EvacuationKind.EVACUATE,
        host=moves.SOURCE,
        state=state,
        sequence=1,
        started_at=utc_now(),
        at=utc_now(),
        containers=rows,
    ).model_dump(mode="json")


async def recovered(folder: Path, content: object) -> tuple[str, Told]:
    settings = moves.settings().model_copy(update={"state_dir": folder})
    journal = Journal(folder / "journal")
    host = Host(settings, cast("Docker", None), cast("Shell", None), journal)
    await journal.open()
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    told = Told()
    try:
        evacuations = Evacuations(Around(host, cast("Sources", None), cast("Hosts", None), cast("Peers", None)), told)
        return await evacuations.recover(told.ended), told
    finally:
        await journal.close()


async def test_after_a_reboot_it_does_not_go_on_and_says_so(tmp_path: Path) -> None:
    rows = [
        Evacuee(container="gone", container_id="01" * 32, state=EvacueeState.MOVED, to="host-b"),
        Evacuee(container="web", container_id=ID, state=EvacueeState.WAITING),
    ]
    content = {
        "command": "c-1",
        "boot": "another",
        "only": [],
        "containers": None,
        "attempts": {},
        "status": status_of(EvacuationState.RUNNING, *rows),
    }
    goes_on, told = await recovered(tmp_path, content)
    assert goes_on == ""
    [(command, status)] = told.ends
    assert (command, status.state) == ("c-1", EvacuationState.INTERRUPTED)
    assert [one.state for one in status.containers] == [EvacueeState.MOVED, EvacueeState.LEFT]
    assert "rebooted" in str(status.containers[1].error)
    assert status.error is not None


async def test_the_last_one_is_said_again_and_a_file_that_can_t_be_read_is_left(tmp_path: Path) -> None:
    content = {
        "command": "c-1",
        "boot": "another",
        "only": [],
        "containers": None,
        "attempts": {},
        "status": status_of(EvacuationState.DONE),
    }
    goes_on, told = await recovered(tmp_path, content)
    assert (goes_on, told.ends) == ("", [])
    assert [status.state for status in told.statuses] == [EvacuationState.DONE]
    goes_on, told = await recovered(tmp_path, "{")
    assert (goes_on, told.ends, told.statuses) == ("", [], [])
