"""The moment to freeze, where the first one is not good: what is frozen, thawed and locked, in which order."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.base.shell import Shell
from agent.checkpoint.freezer import Cgroup
from agent.network import quiet
from agent.network.sockets import Ownerless

GROUP = Cgroup(Path("/no/such"), 2)


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the container, in place of doing it."""
    done: list[str] = []

    def noting(name: str) -> Any:
        async def note(*_: Any, inner: bool = False) -> None:
            done.append(f"{name} inner" if inner else name)

        return note

    async def look(_: int) -> Ownerless:
        return Ownerless()

    named = {"lock": noting("lock"), "shut_gate": noting("gate")}
    monkeypatch.setattr(quiet, "lock", SimpleNamespace(**named))
    monkeypatch.setattr(quiet, "freezer", SimpleNamespace(freeze=noting("freeze"), thaw=noting("thaw")))
    monkeypatch.setattr(quiet, "_look", look)
    monkeypatch.setattr(quiet, "is_ours", lambda pid: pid == 1)
    return done


def answers(*said: bool) -> tuple[Iterator[bool], Any]:
    left = iter(said)
    return left, lambda: next(left)


@pytest.mark.parametrize(("pid", "lock"), [(100, ["lock"]), (1, [])])
async def test_a_moment_that_is_not_good_is_left_for_another(did: list[str], pid: int, lock: list[str]) -> None:
    left, good = answers(False, False, True)
    gate = ["gate"] if lock else []
    held = await quiet.hold(Shell(), pid, GROUP, 1, good=good)
    once = [*lock, "freeze"]
    assert did == [*gate, *once, *gate, "thaw", *once, *gate, "thaw", *once]
    assert not list(left), "each was asked for, with the tasks frozen"
    assert held.left == Ownerless()


@pytest.mark.parametrize("pid", [100, 1])
async def test_where_no_moment_is_good_the_last_is_taken(did: list[str], pid: int) -> None:
    await quiet.hold(Shell(), pid, GROUP, 1, good=lambda: False)
    assert did[-1] == "freeze"
    assert did.count("freeze") == did.count("thaw") + 1 == quiet.ATTEMPTS
