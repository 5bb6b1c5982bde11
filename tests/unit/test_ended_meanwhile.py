"""A container that ends while it is looked at: what Docker says of it by then is the answer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.base.errors import ContainerGone, Refused
from agent.migration import preflight
from agent.migration.host import Host
from protocol.base import new_command_id
from protocol.commands import Migrate
from protocol.errors import ErrorCode


class Docker:
    """Says these things of it, one after the other."""

    def __init__(self, *states: str) -> None:
        self._states = list(states)

    async def find(self, _ref: str) -> Any:
        state = self._states.pop(0)
        running = state in ("running", "restarting")
        pid = 7 if state == "running" else 0
        return SimpleNamespace(id="f" * 64, name="loops", state=state, running=running, pid=pid) if state else None


async def look(monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    async def ended(*_: object, **__: object) -> None:
        raise ContainerGone("process 7 is gone")

    monkeypatch.setattr(preflight, "_look_at", ended)
    host = cast("Host", SimpleNamespace(docker=Docker(*states), name="a"))
    await preflight.look_at(host, Migrate(id=new_command_id(), container="loops", to="b"), "m-0000000000000000")


@pytest.mark.parametrize("then", ["restarting", "exited"])
async def test_docker_s_word_is_said(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    with pytest.raises(Refused, match=f"loops is {then}, not running") as refused:
        await look(monkeypatch, "running", then)
    assert refused.value.code is ErrorCode.NOT_RUNNING


@pytest.mark.parametrize("then", ["running", ""])
async def test_or_that_it_has_ended_where_docker_does_not_know_or_has_it_no_more(
    monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    with pytest.raises(ContainerGone):
        await look(monkeypatch, "running", then)
