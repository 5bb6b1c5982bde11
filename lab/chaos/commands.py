"""What a controller says in the middle of a run: the command again, an old one, a cancel; at the end a person's word.

Each answer has to be the one that the contract says.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agent.base.errors import AgentError
from agent.cli.controller import Controller
from lab.chaos.journals import ENDED, Step
from lab.chaos.plan import Accident, Fault
from lab.cluster import Cluster, migration
from lab.shell import PATIENCE, LabError
from protocol.base import new_command_id
from protocol.commands import Cancel, Command, ListMigrations, Migrate, OpenMigration, Reply, ReplyKind, Resolve
from protocol.errors import Consequence, ErrorCode

if TYPE_CHECKING:
    from lab.chaos.campaign import Seen

ANSWER_SECONDS = 8.0 * PATIENCE
CANCEL_SECONDS = 1.0
UNDECIDED = ("planned", "reserved", "copying", "frozen", "prepared")
BUSY = (ErrorCode.BUSY, ErrorCode.NO_SUCH_CONTAINER, ErrorCode.NAME_TAKEN, ErrorCode.NOT_RUNNING)
BLIND = (ErrorCode.DOCKER_UNAVAILABLE,)
"""Which container is meant can't be asked just now, where an accident has taken dockerd."""


class Commands:
    """Of one run; `wrong` are sentences."""

    def __init__(self, cluster: Cluster, source: str, command: Migrate | None, figures: dict[str, float]) -> None:
        self._cluster = cluster
        self._source = source
        self._command = command
        self._figures = figures
        self.wrong: list[str] = []

    async def give(self, fault: Fault, move: str, steps: Sequence[Step]) -> tuple[bool, str]:
        """Do what the fault says; whether it was answered, and by what."""
        try:
            async with Controller(self._cluster.broker) as controller:
                if fault.accident is Accident.CANCEL:
                    return await self._cancel(controller, move, steps)
                if fault.accident is Accident.DUPLICATE:
                    return await self._again(controller, move, steps)
                return await self._stale(controller, move)
        except (AgentError, LabError, OSError) as error:  # another accident has taken the broker or the agent
            return False, str(error)

    async def _first(self, controller: Controller, command: Command) -> Reply:
        replies = controller.command(self._source, command, patience=ANSWER_SECONDS)
        try:
            return await anext(replies)
        finally:
            await replies.aclose()  # type: ignore[attr-defined]

    async def _cancel(self, controller: Controller, move: str, steps: Sequence[Step]) -> tuple[bool, str]:
        """Taken where nothing is decided, and then it is over within a second; refused afterwards."""
        before, began = _phase(steps, "source"), time.monotonic()
        reply = await self._first(controller, Cancel(id=new_command_id(), migration=move))
        self._figures["cancel answered"] = time.monotonic() - began
        if reply.kind is ReplyKind.FINISHED:
            self._figures["cancel sent"] = began
            return True, "cancelled"
        code = reply.error.code if reply.error else None
        if code is ErrorCode.NO_SPACE and reply.error and reply.error.consequence is Consequence.UNTOUCHED:
            return True, "refused: the journal's disk is full"
        if code not in (ErrorCode.TOO_LATE, ErrorCode.NO_SUCH_MIGRATION):
            self.wrong.append(f"a cancel when the source was {before} was answered {reply.error}")
        elif before in UNDECIDED and _phase(steps, "source") in UNDECIDED and len(steps) < 2:
            self.wrong.append(f"a cancel when the source was {before} was refused: {reply.error}")
        return True, f"refused: {code}"

    async def _again(self, controller: Controller, move: str, steps: Sequence[Step]) -> tuple[bool, str]:
        """The same command is the same move; another one of this container is refused."""
        assert self._command is not None
        reply = await self._first(controller, self._command)
        if reply.migration != move:
            self.wrong.append(f"the same command again was answered {reply.kind} {reply.migration}: {reply.error}")
        other = migration(self._command.container, self._command.to)
        answer = await self._first(controller, other)
        code, consequence = (answer.error.code, answer.error.consequence) if answer.error else (None, None)
        refused = code in BUSY or (code in BLIND and consequence is Consequence.UNTOUCHED)
        if not refused and _phase(steps, "source") not in ENDED:
            self.wrong.append(f"a second move of the same container was answered {answer.kind}: {answer.error}")
        return True, f"{reply.kind}, {code}"

    async def _stale(self, controller: Controller, move: str) -> tuple[bool, str]:
        """A command past its time is not done, and a person's word on what is in no doubt is refused."""
        assert self._command is not None
        old = datetime.now(UTC) - timedelta(seconds=30)
        command = migration(self._command.container, self._command.to, expires_at=old)
        reply = await self._first(controller, command)
        if reply.kind is not ReplyKind.FAILED or reply.migration not in (None, move):
            self.wrong.append(f"a command past its time was answered {reply.kind}: {reply.migration}")
        code = reply.error.code if reply.error else None
        none = Resolve(id=new_command_id(), migration="m-0000000000000000", decision="abort")
        word = await self._first(controller, none)
        if word.kind is not ReplyKind.FAILED:
            self.wrong.append(f"a word on a migration that never was is answered {word.kind}")
        return True, f"{code}"

    async def resolve_what_needs_a_person(self, seen: "Seen") -> str:
        """Say what a person would of a migration that waits for one; empty where none does."""
        for host, role in [(seen.source, "source"), *((name, "target") for name in self._cluster.lab.hosts)]:
            for one in await self.open_on(host):
                if one.role == role and (decision := self._word(one, seen)):
                    return await self._say(host, one, decision)
        return ""

    async def _say(self, host: str, one: OpenMigration, decision: str) -> str:
        command = Resolve.model_validate({"id": new_command_id(), "migration": one.id, "decision": decision})
        try:
            async with Controller(self._cluster.broker) as controller:
                reply = await controller.ask(host, command, patience=20 * PATIENCE)
        except AgentError as error:  # it may have ended by itself meanwhile
            return f"resolve --{decision} at the {one.role} ({one.phase}) was refused: {error}"
        return f"resolve --{decision} at the {one.role} ({one.phase}): {reply.kind}"

    def _word(self, one: OpenMigration, seen: "Seen") -> str:
        if one.role == "source" and one.phase == "committed" and "is gone" in one.doubt:
            seen.verdict.may_have_run = "may have run for a moment" in one.doubt
            return "abort"
        if one.phase == "running" and "did not get across whole" in one.doubt:
            seen.verdict.lost = True
            return "commit"
        return ""

    async def open_on(self, host: str) -> tuple[OpenMigration, ...]:
        try:
            async with Controller(self._cluster.broker) as controller:
                reply = await controller.ask(host, ListMigrations(id=new_command_id()), patience=5 * PATIENCE)
        except AgentError:
            return ()
        return reply.migrations or ()


def _phase(steps: Sequence[Step], role: str) -> str:
    return next((step.phase for step in reversed(steps) if step.role == role), "")
