"""Containers that are to be moved away when their host goes down: an evacuation of these, and a cordon."""

import logging
from collections.abc import Mapping
from datetime import timedelta

from agent.shutdown.evacuation import Order
from agent.shutdown.evacuations import Evacuations, evacuation_id
from protocol.base import new_command_id, utc_now
from protocol.evacuation import EvacueeState

log = logging.getLogger("agent.shutdown")

WHY = "it goes down"
TAKING_BACK_SECONDS = 3.0
"""After the end of its time; whoever is still on the way then is no reason for others to wait."""


class MovesAway:
    """See the module."""

    def __init__(self, evacuations: Evacuations, parallel: int) -> None:
        self._evacuations = evacuations
        self._parallel = parallel

    def begins(self) -> None:
        """The host goes down: it takes no containers any more. A person's cordon stays as it is."""
        if self._evacuations.cordon() is None:
            try:
                self._evacuations.put_cordon(WHY, this_boot=True)
            except OSError as error:
                log.warning("the host still takes containers: %s", error)

    async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
        """Those that are still here, and why. One that goes on already may end first, in half of the time.

        Raises:
            Refused: another evacuation does not end.

        """
        seconds = max(1.0, seconds - TAKING_BACK_SECONDS)
        ends = utc_now() + timedelta(seconds=seconds)
        await self._evacuations.until_idle(seconds / 2)
        order = Order(id=evacuation_id(new_command_id()), parallel=self._parallel, deadline=ends, containers=containers)
        patience = (ends - utc_now()).total_seconds() + TAKING_BACK_SECONDS
        status = await self._evacuations.evacuate(order, patience)
        became = {one.container_id: one for one in status.containers}
        left = {}
        for each in containers:
            one = became.get(each)
            if one is None:
                left[each] = "there was no time to look at it, or it has ended"
            elif one.state is not EvacueeState.MOVED:
                left[each] = one.error.message if one.error is not None else str(one.state)
        return left

    def stays(self) -> None:
        """The host does not go down: it takes containers again."""
        found = self._evacuations.cordon()
        if found is not None and found.why == WHY and found.boot:  # else it is a person's
            self._evacuations.lift_cordon()
