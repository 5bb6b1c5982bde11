"""The commands that empty a host and fill it again, as the dispatcher hands them on; each is answered as all others."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from agent.migration.journal import Journal
from agent.shutdown.evacuations import Evacuations
from protocol.commands import CancelEvacuation, Cordon, Evacuate, Reply, ReplyKind, Return
from protocol.evacuation import EvacuationStatus

Answer = Callable[[Reply], Awaitable[None]]


class Replying(Protocol):
    """Makes a reply of this host."""

    def __call__(self, command: str | None, kind: ReplyKind, **more: object) -> Reply: ...


class Leaving:
    """What is asked of evacuations; `waiting` has, by the evacuation's id, who wants to know how it ends."""

    def __init__(
        self, journal: Journal, evacuations: Evacuations, reply: Replying, waiting: dict[str, list[Answer]]
    ) -> None:
        self._journal = journal
        self._evacuations = evacuations
        self._reply = reply
        self._waiting = waiting

    async def do(self, command: Evacuate | Return | CancelEvacuation | Cordon, answer: Answer) -> Reply:
        match command:
            case Evacuate() | Return():
                return await self._evacuate(command, answer)
            case CancelEvacuation():
                self._evacuations.cancel(command.evacuation)
            case Cordon(cordoned=True):
                self._evacuations.put_cordon("on request")
            case Cordon():
                self._evacuations.lift_cordon()
        return self._reply(command.id, ReplyKind.FINISHED)

    async def _evacuate(self, command: Evacuate | Return, answer: Answer) -> Reply:
        order = await self._evacuations.order(command)
        if command.plan:
            await answer(self._reply(command.id, ReplyKind.ACCEPTED))  # looking at many containers takes its time
            plan = await self._evacuations.plan(order)
            return self._reply(command.id, ReplyKind.FINISHED, evacuation=plan)
        self._waiting[order.id] = [answer]
        try:
            await self._journal.link_command(command.id, order.id)
            status = await self._evacuations.begin(order, command.id, self._ended)
        except BaseException:
            self._waiting.pop(order.id, None)
            raise
        return self._reply(command.id, ReplyKind.ACCEPTED, evacuation=status)

    async def _ended(self, command: str, status: EvacuationStatus) -> None:
        reply = self._reply(command or None, ReplyKind.FINISHED, evacuation=status)
        await self._journal.end_command(command, reply.model_dump_json())
        for each in self._waiting.pop(status.id, []):
            await each(reply)

    async def recover(self) -> None:
        """Go on with what an agent before this one was asked for; who asks again waits for its end."""
        if under_way := await self._evacuations.recover(self._ended):
            self._waiting[under_way] = []
