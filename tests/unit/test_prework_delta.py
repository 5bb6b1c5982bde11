"""The tree on the target is the tree of the source after the freeze, whatever happened between the passes."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agent.prework import content
from agent.prework.tree import Source
from tests.unit.prework_changes import CHANGES, Change, append, image, write_sparse
from tests.unit.test_prework_support import applied, assert_same, copies, let_the_clock_tick, overlays, packed

MIB = 1 << 20
pytestmark = pytest.mark.root


def restored() -> dict[str, Change]:
    """Things to be undone between the passes: the first pass saw them, the second has to take them back."""

    def again(name: str) -> Change:
        return lambda r: (r / name).write_text("back again")

    return {
        "a deleted file comes back": again("doomed"),
        "a deleted directory comes back": lambda r: (r / "gone/other").mkdir(parents=True),
        "a file becomes a directory again": lambda r: ((r / "to-file").unlink(), (r / "to-file/z").mkdir(parents=True)),
        "a directory becomes a file again": lambda r: (shutil.rmtree(r / "to-dir"), again("to-dir")(r)),
        "links are cut": lambda r: ((r / "a-tool").unlink(), (r / "kept/tool-2").write_text("own")),
        "a hole is filled": lambda r: write_sparse(r / "sparse", 0, 4096 * 20, size=123 * 4096),
        "content of the opaque directory": lambda r: ((r / "full/new").unlink(), (r / "full/newer").touch()),
        "the opaque directory is replaced": lambda r: (shutil.rmtree(r / "full"), (r / "full/sub").mkdir(parents=True)),
        "specials go": lambda r: ((r / "fifo").unlink(), (r / "socket").unlink(), (r / "null").unlink()),
        "an ACL goes": lambda r: os.removexattr(r / "etc", "system.posix_acl_default"),
    }


Run = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The image, on two hosts."""
    lower = tmp_path_factory.mktemp("images") / "image"
    lower.mkdir()
    image(lower)
    return copies(lower)


@pytest.fixture
def run(images: list[Path], tmp_path: Path) -> Run:
    return partial(_run, images, tmp_path)


def _run(
    images: list[Path], tmp_path: Path, before: list[Change], between: list[Change], *, live_passes: int = 0
) -> tuple[int, int]:
    with overlays(tmp_path, images) as (here, there):
        for change in before:
            change(here.merged)
        let_the_clock_tick()
        stream, first = packed(here.source())
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        index = first.index
        for change in between:
            change(here.merged)
            if live_passes:
                let_the_clock_tick()
                stream, live = packed(here.source(), index, live=True)
                applied(there.merged, stream)
                index = live.index
        stream, last = packed(here.source(), index, live=False)
        summary = applied(there.merged, stream)
        assert_same(here.merged, there.merged)
        assert summary.notes == () == last.notes
        return last.entries, last.data_bytes


@pytest.mark.parametrize("name", CHANGES)
def test_change_before_the_first_pass_arrives(run: Run, name: str) -> None:
    entries, _ = run([CHANGES[name]], [])
    assert entries == 0


@pytest.mark.parametrize("name", CHANGES)
def test_change_between_the_passes_arrives(run: Run, name: str) -> None:
    run([], [CHANGES[name]])


@pytest.mark.parametrize("name", CHANGES)
def test_change_to_what_was_already_copied_up_arrives(tmp_path: Path, name: str) -> None:
    """The image is empty: all files are in the writable layer, and were sent by the first pass."""
    with overlays(tmp_path, copies(_empty(tmp_path))) as (here, there):
        image(here.merged, big=6 * MIB if "big" in name else 4096)
        let_the_clock_tick()
        stream, first = packed(here.source())
        applied(there.merged, stream)
        CHANGES[name](here.merged)
        stream, _ = packed(here.source(), first.index, live=False)
        applied(there.merged, stream)
        assert_same(here.merged, there.merged)


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


CONTRADICTORY = {
    "a file becomes a symlink",
    "an xattr goes",
    "a directory's xattr goes",
    "a directory's metadata changes",
    "a sparse file that ends in a hole",
    "a big file is emptied",
    "an inherited ACL is shed",
    "only the times change",
}


def test_all_changes_at_once_arrive(run: Run) -> None:
    run([], [change for name, change in CHANGES.items() if name not in CONTRADICTORY])


@pytest.mark.parametrize("live_passes", [0, 1])
def test_what_the_first_pass_saw_is_taken_back(run: Run, live_passes: int) -> None:
    names = ["a file is deleted", "a directory is deleted", "a directory becomes a file", "a file becomes a directory"]
    names += ["hard links are made", "a sparse file", "a directory hides the image's", "special files", "ACLs"]
    undone = restored()
    run([CHANGES[n] for n in names], list(undone.values()), live_passes=live_passes)


def test_delta_of_a_big_file_is_its_changed_pieces(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "db").write_bytes(os.urandom(32 * MIB))
    let_the_clock_tick()
    stream, first = packed(Source(str(source)))
    applied(target, stream)
    mapped = os.stat(target / "db").st_ino
    with (source / "db").open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"page")
    stream, last = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)
    assert last.data_bytes == 128 << 10
    assert os.stat(target / "db").st_ino == mapped


def test_a_file_that_grows_while_it_is_being_opened_is_patched_where_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass looks at a file, writes it out, and reads it: a program may write in between."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "log").write_bytes(os.urandom(5 * MIB))
    let_the_clock_tick()
    write_out = content.write_out

    def meanwhile(fd: int, *, through_overlay: bool) -> None:
        append(source / "log", b"one line more\n")
        write_out(fd, through_overlay=through_overlay)

    with monkeypatch.context() as patched:
        patched.setattr(content, "write_out", meanwhile)
        stream, first = packed(Source(str(source)))
    applied(target, stream)
    append(source / "log", b"and the last\n")
    stream, last = packed(Source(str(source)), first.index, live=False)
    applied(target, stream)
    assert_same(source, target)
    assert last.data_bytes <= 256 << 10, "only what was added"


def test_unchanged_tree_sends_nothing(run: Run) -> None:
    assert run(list(CHANGES.values())[:3], []) == (0, 0)
