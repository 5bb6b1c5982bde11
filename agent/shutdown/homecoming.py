"""Containers with `transship.return=auto` go home by themselves, once the host that an evacuation has taken them from
takes containers again: after its boot, when its shutdown was called off, or when it was uncordoned.

What a host says of itself is heard; dockerd is asked only when one has begun to take containers.
"""

import asyncio
import logging

from agent.base.errors import AgentError
from agent.doors.docker import unavailable
from agent.shutdown import survey
from agent.shutdown.evacuation import Order
from agent.shutdown.evacuations import Evacuations, evacuation_id
from protocol.base import new_command_id
from protocol.errors import ErrorCode
from protocol.evacuation import EvacuationKind
from protocol.status import HostStatus

log = logging.getLogger("agent.shutdown")


class Homecoming:
    """See the module."""

    def __init__(self, host: str, hosts: survey.Hosts, evacuations: Evacuations, parallel: int) -> None:
        self._host = host
        self._hosts = hosts
        self._evacuations = evacuations
        self._parallel = parallel
        self._open: set[str] = set()
        """Hosts that took containers when they were last heard of."""
        self._sending: dict[str, asyncio.Task[None]] = {}

    def heard(self) -> None:
        """A host has said something of itself."""
        now = {one.host for one in self._hosts.statuses() if one.host != self._host and takes_containers(one)}
        for home in now - self._open - self._sending.keys():
            task = asyncio.create_task(self._send(home), name=f"send home to {home}")
            self._sending[home] = task
            task.add_done_callback(lambda _, home=home: self._sending.pop(home, None))  # type: ignore[misc]
        self._open = now

    async def close(self) -> None:
        tasks = list(self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, home: str) -> None:
        """One after the other with what else is moved away from here; who does not get there stays, and it is said."""
        try:
            while theirs := await self._evacuations.at_home_in(home, by_itself=True):
                order = Order(
                    id=evacuation_id(new_command_id()),
                    kind=EvacuationKind.RETURN,
                    only=(home,),
                    parallel=self._parallel,
                    containers=frozenset(theirs),
                )
                try:
                    await self._evacuations.evacuate(order)
                except AgentError as error:
                    if error.code is not ErrorCode.BUSY:
                        raise
                    await self._evacuations.until_ended()
                else:
                    return
        except AgentError as error:
            log.warning("what is at home on %s could not be sent there: %s", home, error.message)
            if unavailable(error) is not None:
                self._open.discard(home)  # it is tried again when the next host says something


def takes_containers(status: HostStatus) -> bool:
    """As far as it says so."""
    return status.online and not status.cordoned and status.engine is not None and bool(status.engine.docker)
