"""What there is to plan with: the containers that are to go, each looked at as if it were moved now; the other hosts.

Nothing is touched by looking. What stands against a container on this side is known here, before any is moved.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from agent.base.errors import AgentError, Refused
from agent.base.tasks import all_of
from agent.doors.docker_model import Container
from agent.migration import confinement, preflight
from agent.migration.arrival import image_room
from agent.migration.host import Host
from agent.migration.sources import Peers
from agent.shutdown import labels
from agent.shutdown.places import Leaving, Place
from protocol.base import new_migration_id
from protocol.commands import Migrate
from protocol.errors import ErrorCode, Reason
from protocol.status import Engine, HostStatus

log = logging.getLogger("agent.shutdown")

ALIVE: Final = frozenset({"running", "paused", "restarting"})
AT_ONCE: Final = 4
PROBE_SECONDS: Final = 5.0


class Hosts(Protocol):
    """What is known of the hosts, from what they have said."""

    def statuses(self) -> list[HostStatus]: ...


async def alive(host: Host, only: Collection[str] | None = None) -> list[str]:
    """The ids of the containers that have something to lose."""
    return [one.id for one in await host.docker.list() if one.state in ALIVE and (only is None or one.id in only)]


async def look(host: Host, ids: Iterable[str], engine: Engine) -> list[Leaving]:
    """Each container, with what it needs and all that is against it; those that are gone meanwhile are left out."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(container_id: str) -> Leaving | None:
        async with gate:
            container = await host.docker.find(container_id)
            return await _look(host, container, engine) if container is not None else None

    return [found for found in await all_of([one(each) for each in ids]) if found is not None]


async def _look(host: Host, container: Container, engine: Engine) -> Leaving:
    wishes = labels.read(container.labels)
    leaving = Leaving(
        id=container.id,
        name=container.name,
        priority=wishes.priority,
        goes=wishes.goes,
        targets=tuple(name for name in wishes.targets if name != host.name),
        notes=wishes.notes,
    )
    if not wishes.goes:
        return leaving
    return await _examined(host, container, engine, leaving)


async def _examined(host: Host, container: Container, engine: Engine, leaving: Leaving) -> Leaving:
    migration = new_migration_id()  # of a move that is not begun
    request = Migrate(id=migration, container=container.id, to=host.name)
    try:
        subject = await preflight.examine(host, request, migration)
    except Refused as refused:
        reasons = refused.reasons or (Reason(code=refused.code, message=refused.message, hint=refused.hint),)
        return replace(leaving, against=tuple(reasons))
    except AgentError as error:
        return replace(leaving, against=(Reason(code=error.code, message=error.message, hint=error.hint),))
    except (OSError, LookupError, ValueError) as error:  # it has ended while it was looked at
        log.info("%s could not be looked at: %r", container.name, error)
        reason = Reason(code=ErrorCode.NOT_RUNNING, message=f"it could not be looked at: {error}")
        return replace(leaving, against=(reason,))
    offer = subject.offer
    settings = offer.create.get("HostConfig") or {}
    named = confinement.profile(offer.create)
    return replace(
        leaving,
        memory_bytes=offer.memory_bytes,
        room_bytes=image_room(offer),
        files_bytes=offer.files_bytes,
        cpus=(settings.get("NanoCpus") or 0) / 1e9,
        confined=engine.apparmor and named != confinement.UNCONFINED,
    )


class Surroundings:
    """The other hosts, as they are now. Each is asked once how fast the link to it is, and anew when it was away."""

    def __init__(self, host: Host, hosts: Hosts, peers: Peers) -> None:
        self._host = host
        self._hosts = hosts
        self._peers = peers
        self._asked: dict[str, tuple[float, str]] = {}
        """Bytes a second, or why there was no answer."""

    async def places(self, promised: Mapping[str, tuple[int, int]]) -> list[Place]:
        """Every host that has ever said something; `promised`: bytes, and how many are on their way there."""
        others = [status for status in self._hosts.statuses() if status.host != self._host.name]
        for gone in [name for name in self._asked if name not in {one.host for one in others if one.online}]:
            del self._asked[gone]
        return await all_of([self._place(status, *promised.get(status.host, (0, 0))) for status in others])

    async def _place(self, status: HostStatus, promised: int, underway: int) -> Place:
        allowed = status.host in self._host.settings.peer.allow
        if allowed and status.online and not status.cordoned and status.host not in self._asked:
            self._asked[status.host] = await self._ask(status.host)
        rate, unreachable = self._asked.get(status.host, (0.0, ""))
        return Place(status, allowed, rate, unreachable, promised, underway)

    async def _ask(self, name: str) -> tuple[float, str]:
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._peers(name) as peer:
                return (await peer.probe(new_migration_id())).rate, ""
        except TimeoutError:
            return 0.0, f"its agent did not answer within {PROBE_SECONDS:g} s"
        except AgentError as error:
            return 0.0, f"its agent can't be reached: {error.message}"
