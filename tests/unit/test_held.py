"""What may be killed: a copy that is held, and nothing that the kernel names when the copy is dead already."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from agent.base.errors import ContainerGone, StepFailed
from agent.checkpoint import freezer
from agent.checkpoint.freezer import Cgroup
from agent.doors.handover import HandOver
from agent.migration import held

COPY = "c" * 64
OF = {
    1: Cgroup(Path(f"/sys/fs/cgroup/freezer/docker/{COPY}"), 1),
    2: Cgroup(Path(f"/sys/fs/cgroup/system.slice/docker-{COPY}.scope"), 2),
    3: Cgroup(Path("/sys/fs/cgroup/system.slice/containerd.service"), 2),
}


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def cgroup_of(pid: int) -> Cgroup:
        if pid not in OF:
            raise ContainerGone(f"process {pid} is gone")
        return OF[pid]

    monkeypatch.setattr(freezer, "cgroup_of", cgroup_of)


@pytest.mark.parametrize(
    ("pids", "found"),
    [([1], 1), ([2], 2), ([4, 3, 2], 2), ([3], None), ([4], None), ([], None)],
    ids=["v1", "v2-systemd", "dead-but-for-criu", "runc-alone", "dead", "nobody"],
)
def test_only_a_cgroup_with_the_containers_own_name_is_ended(pids: list[int], found: int | None) -> None:
    assert held._cgroup(COPY, pids) == (OF[found] if found else None)


def _process(folder: Path, cgroup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cgroup").write_text(cgroup)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read(folder / "cgroup" if path.name == "cgroup" else path))


@pytest.mark.parametrize("said", ["0::/\n", "7:freezer:/\n0::/\n", ""], ids=["v2", "v1", "nothing"])
def test_the_root_is_nobodys_cgroup(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that is dead and not reaped yet cgroup v1 says the root: the whole host."""
    monkeypatch.undo()
    _process(tmp_path, said, monkeypatch)
    with pytest.raises(ContainerGone):
        freezer.cgroup_of(1)


def test_a_containers_cgroup_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    _process(tmp_path, f"0::/docker/{COPY}\n", monkeypatch)
    assert freezer.cgroup_of(1) == Cgroup(freezer.CGROUP_ROOT / "docker" / COPY, 2)


async def test_why_a_copy_is_gone_is_for_dockerd_to_say() -> None:
    async def gone() -> None:
        raise ContainerGone("process 7 is in no cgroup of a container")

    async def given_up() -> None:
        await asyncio.sleep(0)
        raise StepFailed("failed to set up container networking")

    async def taken() -> None:
        """The start has returned, and the copy has ended by itself."""

    with pytest.raises(StepFailed, match="networking"):
        await held.or_why_it_ended(gone(), asyncio.create_task(given_up()))
    with pytest.raises(ContainerGone):
        await held.or_why_it_ended(gone(), asyncio.create_task(taken()))
    await held.or_why_it_ended(taken(), None)


class _Said:
    """A hand-over folder: what is said there, and whether anybody is left who could say more."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[str] = asyncio.Queue()
        self.over = asyncio.Event()

    async def event(self) -> str:
        return await self.words.get()

    async def runtime_ended(self) -> None:
        await self.over.wait()


async def _start(failure: Exception | None = None) -> None:
    if failure is not None:
        raise failure


async def test_a_start_that_has_returned_is_no_end_of_the_restore() -> None:
    said, start = _Said(), asyncio.create_task(_start())
    await start
    hearing = asyncio.create_task(held.next_word(cast("HandOver", said), start, asyncio.Event(), ("held",)))
    await asyncio.sleep(0)
    assert not hearing.done()
    said.words.put_nowait("held")
    assert await hearing == "held"


async def test_a_runtime_that_ends_without_a_word_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "WORD_SECONDS", 0.1)
    said, start = _Said(), asyncio.create_task(_start())
    said.over.set()
    assert await held.next_word(cast("HandOver", said), start, asyncio.Event(), ("held",)) == ""


async def test_a_start_that_fails_is_one_and_what_was_said_before_is_heard() -> None:
    said, start = _Said(), asyncio.create_task(_start(StepFailed("no network")))
    said.words.put_nowait("failed")
    assert await held.next_word(cast("HandOver", said), start, asyncio.Event(), ("held",)) == "failed"
