"""`transship doctor`: what it finds on a host, and that it only mends what is nobody's."""

from pathlib import Path
from typing import Any

import pytest

from agent.base.config import Settings
from agent.base.shell import Shell
from agent.cli import doctor, leftovers
from agent.cli.checks import Verdict
from agent.cli.setup import Places
from agent.migration.machine import Role
from protocol.status import Phase
from tests.unit import moves
from tests.unit.test_cli_main import FakeShell

OPEN, OTHER = "m-1111111111111111", "m-2222222222222222"
MIB = 1 << 20


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    dumps, handovers = tmp_path / "dump", tmp_path / "handover"
    for folder in (dumps / OPEN, dumps / OTHER, handovers / moves.CONTAINER, handovers / ("d" * 64)):
        folder.mkdir(parents=True)
    return dumps, handovers


def test_folders_of_moves_that_go_on_are_in_use(folders: tuple[Path, Path]) -> None:
    dumps, handovers = folders
    going_on = [
        moves.entry(Role.SOURCE, Phase.COPYING, {"container_id": "e" * 64}, OPEN),
        moves.entry(Role.TARGET, Phase.STAGED, {"container_id": moves.CONTAINER}),
    ]
    assert leftovers.orphans(going_on, dumps, handovers) == [dumps / OTHER, handovers / ("d" * 64)]
    assert len(leftovers.orphans([], dumps, handovers)) == 4
    assert leftovers.orphans([], dumps / "none", handovers / "none") == []


async def test_what_is_cleared_is_of_nobody(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps, handovers = folders
    monkeypatch.setattr(leftovers, "DUMPS", dumps)
    monkeypatch.setattr(leftovers.orphans, "__defaults__", (dumps, handovers))
    journal = moves.FakeJournal(tmp_path / "journal.sqlite")
    await journal.open()
    await journal.put(moves.entry(Role.SOURCE, Phase.STRANDED, {"container_id": moves.CONTAINER}, OPEN))
    await journal.close()
    did = await leftovers.clear(Shell(), tmp_path)
    assert len(did) == 2
    assert [each.name for each in dumps.iterdir()] == [OPEN]
    assert [each.name for each in handovers.iterdir()] == [moves.CONTAINER]


async def test_a_journal_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_text("nonsense" * 1000)
    [finding] = await leftovers.look(Shell(), tmp_path)
    assert finding.verdict is Verdict.MISSING
    assert "journal can't be read" in finding.said


@pytest.mark.parametrize(("free", "verdict"), [(100, Verdict.MISSING), (600, Verdict.DOUBTFUL), (5000, Verdict.GOOD)])
def test_room_is_compared_with_what_is_set_aside(free: int, verdict: Verdict) -> None:
    finding = doctor._room("disk", {"/": 9000 * MIB, "/var": free * MIB}, 512 * MIB)
    assert finding.verdict is verdict
    assert f"{free} MiB are free at /var" in finding.said


@pytest.mark.parametrize(
    ("made", "verdict"), [("cgroup.controllers", Verdict.GOOD), ("freezer/", Verdict.GOOD), ("", Verdict.MISSING)]
)
def test_there_has_to_be_a_freezer(made: str, verdict: Verdict, tmp_path: Path) -> None:
    if made.endswith("/"):
        (tmp_path / made).mkdir()
    elif made:
        (tmp_path / made).touch()
    assert doctor._cgroup(tmp_path).verdict is verdict


async def test_a_kernel_without_what_a_restore_needs_is_doubtful() -> None:
    has: dict[str, Any] = {f"criu_check_feature_{name}": (0, "", []) for name in ("timens", "get_rseq_conf")}
    finding = await doctor._kernel(FakeShell(**has))  # type: ignore[arg-type]
    assert (finding.verdict, "seccomp_suspend" in finding.said) == (Verdict.DOUBTFUL, True)
    has["criu_check_feature_seccomp_suspend"] = (0, "", [])
    finding = await doctor._kernel(FakeShell(**has))  # type: ignore[arg-type]
    assert finding.verdict is Verdict.GOOD
    assert "without mem_dirty_track, uffd-noncoop" in finding.said


def test_the_journal_has_to_be_writable(tmp_path: Path) -> None:
    assert doctor._journal(Settings(host="a", state_dir=tmp_path)).verdict is Verdict.GOOD
    assert list(tmp_path.iterdir()) == []
    assert doctor._journal(Settings(host="a", state_dir=tmp_path / "none")).verdict is Verdict.MISSING


def test_what_systemd_reads_has_to_be_there_where_there_is_systemd(tmp_path: Path) -> None:
    places = Places(root=tmp_path)
    assert doctor._logind(places) == []
    (tmp_path / "lib/systemd").mkdir(parents=True)
    (tmp_path / "lib/systemd/systemd").touch()
    [finding] = doctor._logind(places)
    assert finding.verdict is Verdict.DOUBTFUL
    assert "60-transship.conf" in finding.said
