"""Containers that are to be moved away when their host goes down: an evacuation of these, and a cordon."""

from collections.abc import Mapping
from datetime import timedelta

from agent.shutdown.evacuation import Order
from agent.shutdown.evacuations import Evacuations, evacuation_id
from protocol.base import new_command_id, utc_now
from protocol.evacuation import EvacueeState

WHY = "it goes down"


class MovesAway:
    """See the module."""

    def __init__(self, evacuations: Evacuations, parallel: int) -> None:
        self._evacuations = evacuations
        self._parallel = parallel
        self._cordoned = False

    async def __call__(self, containers: frozenset[str], seconds: float) -> Mapping[str, str]:
        """Those that are still here, and why.

        Raises:
            Refused: another evacuation goes on.

        """
        found = self._evacuations.cordon()
        if found is None:
            self._evacuations.put_cordon(WHY, this_boot=True)
        # A person's stays as it is, also when the shutdown is called off; ours may be of the agent before this one.
        self._cordoned = found is None or (found.why == WHY and bool(found.boot))
        order = Order(
            id=evacuation_id(new_command_id()),
            parallel=self._parallel,
            deadline=utc_now() + timedelta(seconds=seconds),
            containers=containers,
        )
        status = await self._evacuations.evacuate(order)
        left = [one for one in status.containers if one.state is not EvacueeState.MOVED]
        return {one.container_id: one.error.message if one.error is not None else str(one.state) for one in left}

    def stays(self) -> None:
        """The host does not go down: it takes containers again."""
        if self._cordoned:
            self._evacuations.lift_cordon()
            self._cordoned = False
