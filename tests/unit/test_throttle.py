"""A container that is slowed down for a while has what it was allowed again, whoever takes that back."""

from pathlib import Path

import pytest

from agent.checkpoint import throttle
from agent.checkpoint.throttle import Throttle

FILES = {2: "cpu.max", 1: "cpu.cfs_quota_us"}


@pytest.fixture(params=[2, 1])
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    found: int = request.param
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / FILES[found]).write_text({2: "150000 100000\n", 1: "150000\n"}[found])
    (folder / "cpu.cfs_period_us").write_text("50000\n")
    monkeypatch.setattr(throttle, "_place", lambda pid, controller="cpu": (folder, found))
    return found


def test_it_is_slowed_down_and_taken_back_by_another(tmp_path: Path, version: int) -> None:
    file = tmp_path / "cgroup" / FILES[version]
    before = file.read_text()
    one = Throttle(tmp_path)
    one.limit(1, 0.5)
    assert file.read_text() == {2: "50000 100000", 1: "25000"}[version]
    one.limit(1, 0.00001)
    assert file.read_text().split()[0] == "1000", "less than that no kernel takes"
    one.pause()
    assert file.read_text().split() == before.split()
    one.limit(1, 0.25)
    Throttle(tmp_path).take_back()  # after a crash
    assert file.read_text().split() == before.split()
    Throttle(tmp_path).take_back()
    assert list(tmp_path.iterdir()) == [tmp_path / "cgroup"]


def test_one_that_was_never_slowed_down_is_left_alone_and_so_is_one_that_has_gone(tmp_path: Path, version: int) -> None:
    file = tmp_path / "cgroup" / FILES[version]
    before = file.read_text()
    Throttle(tmp_path).take_back()
    assert file.read_text() == before
    Throttle(tmp_path).limit(1, 0.5)
    for each in file.parent.iterdir():
        each.unlink()
    file.parent.rmdir()
    Throttle(tmp_path).take_back()
    assert not list(tmp_path.iterdir())


def test_what_it_uses_is_told_of_this_very_process() -> None:
    assert throttle.used_seconds(1 << 30) == 0
