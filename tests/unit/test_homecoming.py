"""Who goes home by itself, and when: a host that takes containers again is told from one that has done so all along."""

import asyncio
from typing import Any

import pytest

from agent.base.errors import DockerFailed, Refused
from agent.shutdown.evacuation import Order
from agent.shutdown.homecoming import Homecoming
from protocol.base import utc_now
from protocol.errors import ErrorCode
from protocol.evacuation import EvacuationKind
from protocol.status import Engine, HostStatus


class World:
    """Hosts, and pretended evacuations."""

    def __init__(self) -> None:
        self.said: dict[str, HostStatus] = {}
        self.theirs: list[str] = ["one"]
        self.orders: list[Order] = []
        self.refusals: list[Exception] = []
        self.waited = 0
        self.homecoming = Homecoming("here", self, self, 4)  # type: ignore[arg-type]

    def statuses(self) -> list[HostStatus]:
        return list(self.said.values())

    async def at_home_in(self, host: str, *, by_itself: bool = False) -> list[str]:
        assert by_itself
        return self.theirs

    async def evacuate(self, order: Order) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.orders.append(order)

    async def until_ended(self) -> None:
        self.waited += 1

    async def says(self, host: str, **said: Any) -> None:
        about = {"online": True, "engine": Engine(docker="28"), **said}
        self.said[host] = HostStatus(host=host, at=utc_now(), agent_version="1", peer_url="", **about)
        self.homecoming.heard()
        await asyncio.gather(*self.homecoming._sending.values())


@pytest.fixture
def world() -> World:
    return World()


async def test_a_host_that_takes_containers_again_gets_its_own_back_once(world: World) -> None:
    await world.says("home", cordoned=True)
    await world.says("home", online=False)
    await world.says("home", engine=None)
    assert world.orders == []
    await world.says("home")
    await world.says("home")
    [order] = world.orders
    assert (order.kind, order.only, order.containers) == (EvacuationKind.RETURN, ("home",), frozenset({"one"}))
    await world.says("home", cordoned=True)
    await world.says("home")
    assert len(world.orders) == 2


async def test_nothing_is_begun_where_nobody_goes_home_by_himself(world: World) -> None:
    world.theirs = []
    await world.says("home")
    assert world.orders == []


async def test_this_host_is_no_home_to_be_sent_to(world: World) -> None:
    await world.says("here")
    assert world.orders == []


async def test_what_goes_on_here_is_waited_for(world: World) -> None:
    world.refusals = [Refused(ErrorCode.BUSY, "another evacuation goes on")]
    await world.says("home")
    assert (world.waited, len(world.orders)) == (1, 1)


async def test_a_dockerd_that_is_away_is_asked_when_something_is_heard_again(world: World) -> None:
    world.refusals = [DockerFailed("dockerd does not answer")]
    await world.says("home")
    assert world.orders == []
    await world.says("another", online=False)
    assert len(world.orders) == 1


async def test_another_refusal_is_an_end_of_it(world: World) -> None:
    world.refusals = [Refused(ErrorCode.SAME_HOST, "no")]
    await world.says("home")
    await world.says("home")
    assert world.orders == []
