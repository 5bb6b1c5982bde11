"""Commands in, work out. Each command is done once, whatever comes twice; each is answered, whatever becomes of it.

The one place where an error ends: it is logged once and becomes a reply.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable

from pydantic import TypeAdapter

from agent import __version__
from agent.base.errors import AgentError, Refused, StepFailed
from agent.check.question import Questions
from agent.doors.docker_model import Container
from agent.migration import known
from agent.migration.host import Host
from agent.migration.journal import Seen
from agent.migration.known import Hosts
from agent.migration.machine import Role
from agent.migration.moving import doubt, untouched
from agent.migration.report import report
from agent.migration.run import Run
from agent.migration.sources import Sources
from agent.migration.targets import Targets
from agent.shutdown.commands import Leaving
from agent.shutdown.evacuations import Evacuations
from agent.shutdown.host_down import HostDown
from agent.vault.natives import Natives
from agent.vault.vault import Outcome, Vault
from protocol.base import utc_now
from protocol.commands import (
    Cancel,
    CancelEvacuation,
    Check,
    Checkpoint,
    Command,
    Cordon,
    Evacuate,
    Limit,
    ListCheckpoints,
    ListMigrations,
    Migrate,
    NativeCreate,
    NativeList,
    NativeRemove,
    NativeStart,
    OpenMigration,
    PinCheckpoint,
    Ping,
    RemoveCheckpoint,
    Reply,
    ReplyKind,
    Resolve,
    Restore,
    Return,
    ShutdownNotice,
)
from protocol.errors import ErrorCode, ErrorInfo
from protocol.peer import DecisionKind
from protocol.status import Phase

log = logging.getLogger("agent.dispatcher")

Answer = Callable[[Reply], Awaitable[None]]
REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


def digest(command: Command) -> str:
    """What tells a replay from another command; one that is sent again may have another expiry."""
    return hashlib.sha256(command.model_dump_json(exclude={"expires_at"}).encode()).hexdigest()


class Dispatcher:
    """Knows the commands; the work is done by sources and targets."""

    def __init__(
        self,
        host: Host,
        hosts: Hosts,
        sources: Sources,
        targets: Targets,
        vault: Vault,
        natives: Natives,
        evacuations: Evacuations,
        host_down: HostDown,
        questions: Questions,
    ) -> None:
        self._host = host
        self._hosts = hosts
        self._sources = sources
        self._targets = targets
        self._vault = vault
        self._natives = natives
        self._host_down = host_down
        self._questions = questions
        self._waiting: dict[str, list[Answer]] = {}
        """Migration or evacuation -> who wants to know how it ends."""
        self._doing: dict[str, list[Answer]] = {}
        """Command -> who has asked for it again meanwhile."""
        self._leaving = Leaving(host.journal, evacuations, self._reply, self._waiting)

    async def handle(self, command: Command, answer: Answer) -> None:
        """Do a command and answer it; never raises for what the command is about."""
        seen = await self._host.journal.begin_command(command.id, digest(command))
        if seen is not None:
            await self._answer_again(command, seen, answer)
            return
        self._doing[command.id] = []
        try:
            reply = await self._done(command, answer)
            if reply is not None:
                if reply.kind is not ReplyKind.ACCEPTED:
                    await self._host.journal.end_command(command.id, reply.model_dump_json())
                await answer(reply)
        finally:
            again = self._doing.pop(command.id)
        for each in again:
            await self.recorded(command, each)

    async def _done(self, command: Command, answer: Answer) -> Reply | None:
        try:
            return await self._do(command, answer)
        except AgentError as failure:
            error = untouched(failure)  # a migration that has begun tells of its end by itself
            log.warning("command %s (%s): %s", command.id, command.kind, error.message)
            return self._reply(command.id, ReplyKind.FAILED, error=error.info())
        except Exception as error:
            log.exception("command %s (%s) failed", command.id, command.kind)
            info = StepFailed(
                f"{type(error).__name__}: {error}", hint="a bug: the agent's log has the traceback"
            ).info()
            return self._reply(command.id, ReplyKind.FAILED, error=info)

    async def recorded(self, command: Command, answer: Answer) -> bool:
        """Answer a command from the record, if it is in there; whether it was. Nothing is done."""
        seen = await self._host.journal.seen_command(command.id)
        if seen is not None:
            await self._answer_again(command, seen, answer)
        return seen is not None

    async def _answer_again(self, command: Command, seen: Seen, answer: Answer) -> None:
        """A command that came twice: what it did, or that it is still being done. Never another one of the same id."""
        if seen.digest is not None and seen.digest != digest(command):
            log.warning("command %s (%s) has the id of another command", command.id, command.kind)
            info = ErrorInfo(
                code=ErrorCode.BAD_COMMAND,
                message=f"the id {command.id} is that of another command, which came before",
                hint="each command needs an id of its own; nothing was done",
            )
            await answer(self._reply(command.id, ReplyKind.FAILED, error=info))
        elif seen.reply is not None:
            await answer(REPLY.validate_json(seen.reply))
        elif seen.migration is not None and seen.migration in self._waiting:
            self._waiting[seen.migration].append(answer)
            await answer(self._reply(command.id, ReplyKind.ACCEPTED, migration=_named(seen.migration)))
        elif command.id in self._doing:
            self._doing[command.id].append(answer)
            await answer(self._reply(command.id, ReplyKind.ACCEPTED))
        else:
            await answer(await self._after_restart(command, seen.migration))

    async def _after_restart(self, command: Command, migration: str | None) -> Reply:
        """The command was begun before this agent was restarted: where its migration is now."""
        entry = await self._host.journal.get(migration, Role.SOURCE) if migration else None
        if entry is not None and entry.phase is Phase.DONE:
            return self._reply(command.id, ReplyKind.FINISHED, migration=migration)
        what = f"{migration}, which is {entry.phase if entry else 'unknown'} now" if migration else "this command"
        return self._reply(
            command.id,
            ReplyKind.FAILED,
            migration=_named(migration),
            error=ErrorInfo(
                code=ErrorCode.INTERNAL,
                message=f"the agent was restarted during {what}",
                hint=f"`transship migrations`, or the retained status of {migration}"
                if migration
                else "it is not done again under this id: look whether it was done",
            ),
        )

    def _heard(self, command: Ping | ShutdownNotice) -> Reply:
        self._host_down.heard(command)
        return self._reply(command.id, ReplyKind.FINISHED)

    async def _do(self, command: Command, answer: Answer) -> Reply | None:
        match command:
            case Ping() | ShutdownNotice():
                return self._heard(command)
            case Migrate():
                return await self._migrate(command, answer)
            case Check():
                await answer(self._reply(command.id, ReplyKind.ACCEPTED))  # looking at many takes its time
                return self._reply(command.id, ReplyKind.FINISHED, checks=await self._questions.check(command))
            case Cancel() | Limit() | Resolve():
                await self._said_of(command)
                return self._reply(command.id, ReplyKind.FINISHED, migration=command.migration)
            case ListMigrations():
                return self._reply(command.id, ReplyKind.FINISHED, migrations=self.open_migrations())
            case Checkpoint() | Restore():
                return await self._keep(command, answer)
            case ListCheckpoints() | RemoveCheckpoint() | PinCheckpoint():
                return self._stored(command)
            case NativeCreate() | NativeList() | NativeRemove() | NativeStart():
                return await self._native(command, answer)
            case Evacuate() | Return() | CancelEvacuation() | Cordon():
                return await self._leaving.do(command, answer)

    async def recover(self) -> None:
        """Go on with what an agent before this one was asked for, and answer those who ask again."""
        await self._leaving.recover()

    def _stored(self, command: ListCheckpoints | RemoveCheckpoint | PinCheckpoint) -> Reply:
        """What has to do with the host's folder alone."""
        store = self._vault.store
        match command:
            case ListCheckpoints():
                return self._reply(command.id, ReplyKind.FINISHED, checkpoints=tuple(store.all()))
            case RemoveCheckpoint():
                store.remove(command.checkpoint, force=command.force)
                return self._reply(command.id, ReplyKind.FINISHED)
            case PinCheckpoint():
                info = store.pin(command.checkpoint, pinned=command.pinned)
                return self._reply(command.id, ReplyKind.FINISHED, checkpoint=info)

    async def _found(self, ref: str) -> Container:
        container = await self._host.docker.find(ref)
        if container is None:
            raise Refused(
                ErrorCode.NO_SUCH_CONTAINER,
                f"there is no container {ref} on {self._host.name}",
                hint="`transship ps` lists them",
            )
        return container

    async def _native(self, command: NativeCreate | NativeList | NativeRemove | NativeStart, answer: Answer) -> Reply:
        """Docker's own checkpoints; two of the four take their time, and are accepted first."""
        container = await self._found(command.container)
        match command:
            case NativeList():
                names = await self._natives.names(container)
                return self._reply(command.id, ReplyKind.FINISHED, native=names)
            case NativeRemove():
                await self._natives.remove(container, command.name)
            case NativeCreate():
                await answer(self._reply(command.id, ReplyKind.ACCEPTED))
                await self._natives.create(container, command.name, leave_running=command.leave_running)
            case NativeStart():
                elsewhere = command.on if command.on != self._host.name else None
                if elsewhere is not None:
                    self._check_target(container.name, elsewhere)
                await answer(self._reply(command.id, ReplyKind.ACCEPTED))
                await self._natives.start(container, command.name, elsewhere)
        return self._reply(command.id, ReplyKind.FINISHED)

    async def _keep(self, command: Checkpoint | Restore, answer: Answer) -> Reply:
        """A checkpoint or a restore: accepted, and answered again when it has ended."""

        async def begun(migration: str) -> None:
            self._waiting[migration] = [answer]
            await self._host.journal.link_command(command.id, migration)

        async def ended(migration: str, outcome: Outcome) -> None:
            if outcome.error is not None:
                log.warning("%s (%s): %s", migration, command.kind, outcome.error.message)
            reply = self._reply(
                command.id,
                ReplyKind.FAILED if outcome.error else ReplyKind.FINISHED,
                migration=migration,
                error=outcome.error.info() if outcome.error else None,
                checkpoint=outcome.checkpoint,
                notes=outcome.notes,
            )
            await self._host.journal.end_command(command.id, reply.model_dump_json())
            for each in self._waiting.pop(migration, []):
                await each(reply)

        if isinstance(command, Checkpoint):
            container = await self._found(command.container)
            migration = await self._vault.checkpoint(command, container, begun, ended)
        else:
            if command.on is not None and command.on != self._host.name:
                self._check_target(command.checkpoint or "the archive", command.on)
            migration = await self._vault.restore(command, begun, ended)
        return self._reply(command.id, ReplyKind.ACCEPTED, migration=migration)

    async def _migrate(self, command: Migrate, answer: Answer) -> Reply:
        self._check_target(command.container, command.to)
        container = await self._found(command.container)

        async def begun(run: Run) -> None:
            self._waiting[run.id] = [answer]
            await self._host.journal.link_command(command.id, run.id)

        async def ended(run: Run, error: AgentError | None) -> None:
            kind = ReplyKind.FAILED if error else ReplyKind.FINISHED
            info = error.info() if error else None
            reply = self._reply(command.id, kind, migration=run.id, error=info, report=report(run))
            await self._host.journal.end_command(command.id, reply.model_dump_json())
            for each in self._waiting.pop(run.id, []):
                await each(reply)

        run = await self._sources.start(command, container, begun, ended)
        return self._reply(command.id, ReplyKind.ACCEPTED, migration=run.id)

    def _check_target(self, what: str, to: str) -> None:
        if to == self._host.name:
            raise Refused(ErrorCode.SAME_HOST, f"{what} is on {to} already")
        known.peer(self._host, self._hosts, to)

    async def _said_of(self, command: Cancel | Limit | Resolve) -> None:
        """Something about a migration that is under way."""
        match command:
            case Cancel():
                if not self._vault.cancel(command.migration):
                    self._sources.cancel(command.migration)
            case Limit():
                await self._sources.limit(command.migration, command.bandwidth)
            case Resolve():
                await self._resolve(command)

    async def _resolve(self, command: Resolve) -> None:
        decision = DecisionKind(command.decision)
        if await self._sources.knows(command.migration):
            await self._sources.resolve(command.migration, decision)
        else:
            await self._targets.resolve(command.migration, decision)

    def open_migrations(self) -> tuple[OpenMigration, ...]:
        outgoing = [(run, "source") for run in self._sources.open()]
        incoming = [(target.run, "target") for target in self._targets.open()]
        return tuple(
            OpenMigration.model_validate(
                {
                    "id": run.id,
                    "role": role,
                    "container": run.container,
                    "peer": run.peer,
                    "phase": run.phase,
                    "since": run.started,
                    "doubt": doubt(run, role),
                }
            )
            for run, role in [*outgoing, *incoming]
        )

    def _reply(self, command: str | None, kind: ReplyKind, **more: object) -> Reply:
        return Reply.model_validate(
            {
                "kind": kind,
                "host": self._host.name,
                "command": command,
                "at": utc_now(),
                "agent_version": __version__,
                **more,
            }
        )


def _named(work: str | None) -> str | None:
    """Work as a reply names it: a migration by its id; an evacuation has a status of its own."""
    return work if work is not None and work.startswith("m-") else None
