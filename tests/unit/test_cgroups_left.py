"""What the engine does not delete of a container: its cgroups are found by its id, and go when nothing is in them."""

from pathlib import Path

import pytest

from agent.checkpoint import freezer

ID, OTHER = "5f" * 32, "6a" * 32


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(freezer, "CGROUP_ROOT", tmp_path)
    return tmp_path


def made(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True)


@pytest.mark.parametrize(
    ("paths", "version", "found"),
    [
        ((f"freezer/docker/{ID}/inner", f"memory/docker/{ID}", f"freezer/docker/{OTHER}"), 1, f"freezer/docker/{ID}"),
        ((f"system.slice/docker-{ID}.scope/inner", "init.scope"), 2, f"system.slice/docker-{ID}.scope"),
    ],
)
def test_it_is_found_by_its_id(root: Path, paths: tuple[str, ...], version: int, found: str) -> None:
    made(root, *paths)
    assert freezer.of_container(ID) == [freezer.Cgroup(root / found, version)]
    assert freezer.of_container("7b" * 32) == []


def test_all_of_it_goes_and_nothing_of_others(root: Path) -> None:
    made(root, f"freezer/docker/{ID}/inner", f"memory/docker/{ID}", f"memory/docker/{OTHER}")
    freezer.remove_of(ID)
    freezer.remove_of(ID)
    assert freezer.of_container(ID) == []
    assert [path.name for path in (root / "memory/docker").iterdir()] == [OTHER]


def test_what_is_not_empty_stays(root: Path) -> None:
    made(root, f"memory/docker/{ID}")
    (root / f"memory/docker/{ID}/busy").write_text("a file cannot be removed with its folder")
    freezer.remove_of(ID)
    assert (root / f"memory/docker/{ID}/busy").exists()


@pytest.mark.parametrize("name", ["", "docker", ID[:12]])
def test_what_is_no_whole_id_is_nobodys(root: Path, name: str) -> None:
    made(root, f"freezer/docker/{ID}")
    freezer.remove_of(name)
    assert (root / "freezer/docker" / ID).is_dir()


async def test_only_what_nothing_is_in_is_thawed(root: Path) -> None:
    made(root, f"freezer/docker/{ID}", f"freezer/docker/{OTHER}")
    for each, tasks in ((ID, ""), (OTHER, "17\n")):
        (root / "freezer/docker" / each / "cgroup.procs").write_text(tasks)
        (root / "freezer/docker" / each / "freezer.state").write_text("FROZEN")
        await freezer.thaw_empty(each)
    assert (root / f"freezer/docker/{ID}/freezer.state").read_text() == "THAWED"
    assert (root / f"freezer/docker/{OTHER}/freezer.state").read_text() == "FROZEN"


async def test_a_cgroup_that_is_gone_is_not_made_anew(root: Path) -> None:
    await freezer.thaw_if_empty(freezer.Cgroup(root / "freezer/docker" / ID, 1))
    assert not (root / "freezer").exists()
