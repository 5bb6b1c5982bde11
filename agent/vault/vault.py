"""The checkpoints and restores that are under way on this host: one task each, none twice at once, each answered."""

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.archive import layout
from agent.archive.pipeline import Compression
from agent.archive.reader import ArchiveReader
from agent.base import tracing
from agent.base.errors import AgentError, Cancelled, Refused, Stranded
from agent.base.tasks import beside, until_it_works
from agent.doors.docker_model import Container
from agent.migration import preflight
from agent.migration.host import Host
from agent.migration.machine import Role
from agent.migration.moving import foreseen, untouched
from agent.migration.run import Run
from agent.migration.sources import Peers, Sources
from agent.migration.subject import Subject
from agent.migration.targets import Targets
from agent.strategy import dead
from agent.strategy.dump import DUMPS
from agent.vault import bring, clone, registry, take
from agent.vault.here import Here
from agent.vault.places import FromPipe, FromStore, InPipe, InStore, Place, Source
from agent.vault.registry import FromRegistry, InRegistry
from agent.vault.store import Store
from protocol.base import new_command_id, new_migration_id, utc_now
from protocol.checkpoint import CheckpointInfo
from protocol.commands import Checkpoint, Migrate, Restore, TcpPolicy
from protocol.errors import ErrorCode
from protocol.peer import DecisionKind, Offer
from protocol.status import Phase

log = logging.getLogger("agent.vault")

LAYOUTS = "layouts"
"""Below the agent's folder: what is on its way to a registry or from one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a checkpoint or a restore has ended."""

    checkpoint: CheckpointInfo | None = None
    notes: tuple[str, ...] = ()
    error: AgentError | None = None


Ended = Callable[[str, Outcome], Awaitable[None]]
Begun = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class _Work:
    """A checkpoint or a restore under way."""

    task: asyncio.Task[None]
    decided: Callable[[], bool]
    """Whether it is too late to cancel it."""
    cancelled: bool = False
    """On request: not because the agent is being stopped."""


class Vault:
    """See the module."""

    def __init__(self, host: Host, sources: Sources, targets: Targets, peers: Peers) -> None:
        self.store = Store(host.settings.checkpoints)
        self._host = host
        self._sources = sources
        self._targets = targets
        self._peers = peers
        self._work: dict[str, _Work] = {}
        self._restoring: set[str] = set()
        self._going: set[str] = set()
        """Restores that are told to run: no cancel is taken any more."""

    # --- checkpoints ---

    async def checkpoint(self, command: Checkpoint, container: Container, begun: Begun, ended: Ended) -> str:
        """Begin to take one; its id among migrations.

        Raises:
            Refused: the container is part of a move or of another checkpoint.

        """
        migration, checkpoint = new_migration_id(), secrets.token_hex(6)
        record = {"container_id": container.id, "request": command.model_dump(mode="json")}
        run = Run(self._host.journal, Run.entry(migration, Role.SOURCE, container.name, self._host.name, record))
        await self._sources.claim(container, run)
        with contextlib.ExitStack() as held:
            held.callback(self._sources.unclaim, container.id)
            place = self._place(command, container, checkpoint)
            held.callback(place.close)
            try:
                await run.record_beginning()
                await begun(migration)
            except BaseException:
                self._sources.take_over(run)  # nothing was touched; the journal has to say so
                raise
            until_ended = held.pop_all()

        async def work() -> Outcome:
            with until_ended:
                info = await self._take(run, command, container, place, checkpoint)
                return Outcome(info, info.notes)

        self._start(migration, work(), ended, lambda: run.deciding)
        return migration

    async def scheduled(self, container_id: str) -> None:
        """Take one into the folder, to its end; the container goes on.

        Raises:
            AgentError: it failed.

        """
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        async def begun(_: str) -> None: ...

        async def tell(_: str, outcome: Outcome) -> None:
            ended.set_result(outcome)

        container = await self._host.docker.inspect(container_id)
        command = Checkpoint(id=new_command_id(), container=container_id, leave_running=True)
        await self.checkpoint(command, container, begun, tell)
        outcome = await ended
        if outcome.error is not None:
            raise outcome.error

    def _place(self, command: Checkpoint, container: Container, checkpoint: str) -> Place:
        compression: Compression = command.compression.value
        if command.pipe is not None:
            return InPipe(command.pipe, compression)
        if not command.store:
            return InStore(self.store, container.name, checkpoint, compression)
        ref = registry.reference(command.store, checkpoint)
        said = layout.annotations(container.name, container.id, container.image, container.image_id)
        return InRegistry(self._host.shell, self._layout(checkpoint), ref, self._insecure, compression, said)

    def _layout(self, name: str) -> Path:
        return self._host.settings.state_dir / LAYOUTS / name

    @property
    def _insecure(self) -> tuple[str, ...]:
        return self._host.settings.checkpoints.insecure_registries

    def sweep(self) -> None:
        """Remove what an agent before this one has left half done."""
        self.store.sweep()
        shutil.rmtree(self._host.settings.state_dir / LAYOUTS, ignore_errors=True)

    async def _take(
        self, run: Run, command: Checkpoint, container: Container, place: Place, checkpoint: str
    ) -> CheckpointInfo:
        request = Migrate(
            id=new_command_id(), container=container.id, to=self._host.name, tcp=command.tcp, execs=command.execs
        )
        try:
            subject = _without_binds(await preflight.examine(self._host, request, run.id))
            self._check_room(command, subject)
            await run.note_down(**subject.to_record())
            wanted = take.Wanted(checkpoint, command.leave_running, command.with_image)

            async def keep(taken: layout.Taken) -> CheckpointInfo:
                await place.keep()
                info = CheckpointInfo(
                    id=checkpoint,
                    container=container.name,
                    host=self._host.name,
                    at=utc_now(),
                    place=place.shown,
                    bytes=place.size,
                    tasks=taken.tasks,
                    frozen_ms=taken.frozen_ms,
                    image=subject.offer.image.name,
                    left_running=command.leave_running,
                    encrypted=place.sealed,
                    notes=tuple(dict.fromkeys((*subject.notes, *run.notes, *_of_policy(command, subject)))),
                )
                await place.note(info)
                return info

            async with beside(dead.see_to(DUMPS / run.id)):
                info = await take.take(run, subject, self._host, place, wanted, keep)
        except BaseException as failure:
            await self._taken_back(run, failure)
            raise
        await until_it_works(run.id, lambda: run.enter(Phase.ROLLED_BACK), self._host.settings.deadlines.ask_again)
        for removed in self.store.retain():
            log.info("checkpoint %s of %s was removed by the retention", removed.id, removed.container)
        return info

    def _check_room(self, command: Checkpoint, subject: Subject) -> None:
        if command.pipe is not None or command.store:
            return
        need = subject.memory_bytes + subject.offer.files_bytes + self._host.settings.limits.disk_reserve_bytes
        self._host.settings.checkpoints.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (free := self.store.free_bytes()) < need:
            raise Refused(
                ErrorCode.NO_SPACE, f"up to {need >> 20} MiB are needed for the archive, {free >> 20} MiB are free"
            )

    async def _taken_back(self, run: Run, failure: BaseException) -> None:
        """The undo has run by now; where it could not, or all was decided, recovery sees to it until it works."""
        if run.undo_failed or run.deciding:
            self._sources.take_over(run)
            if run.undo_failed and isinstance(failure, AgentError):
                raise Stranded(
                    f"{failure.message}; and not all could be taken back: {'; '.join(run.undo_failed)}",
                    hint="it is tried again until it works; the container may be frozen till then",
                    detail=failure.detail,
                ) from failure
            return
        await run.enter(Phase.REFUSED if run.phase is Phase.PLANNED else Phase.ROLLED_BACK)
        if run.phase is Phase.REFUSED and isinstance(failure, AgentError):
            raise untouched(failure) from failure

    # --- restores ---

    async def restore(self, command: Restore, begun: Begun, ended: Ended) -> str:
        """Begin to restore one; its id among migrations.

        Raises:
            Refused: there is no such archive.

        """
        migration = new_migration_id()
        source = self._source(command, migration)
        try:
            await begun(migration)
        except BaseException:
            source.close()
            raise

        async def work() -> Outcome:
            self._restoring.add(migration)
            try:
                return Outcome(notes=tuple(await self._bring(migration, command, source)))
            finally:
                self._restoring.discard(migration)
                self._going.discard(migration)
                source.close()

        self._start(migration, work(), ended, lambda: migration in self._going)
        return migration

    def _source(self, command: Restore, migration: str) -> Source:
        if [bool(command.pipe), bool(command.checkpoint), bool(command.store)].count(True) != 1:
            raise Refused(ErrorCode.BAD_COMMAND, "say one: which checkpoint, or which pipe or store it comes from")
        if command.pipe is not None:
            return FromPipe(command.pipe)
        if command.checkpoint is not None:
            return FromStore(self.store, command.checkpoint)
        ref = registry.reference(command.store, "latest")
        return FromRegistry(self._host.shell, self._layout(migration), ref, self._insecure)

    async def _bring(self, migration: str, command: Restore, source: Source) -> list[str]:
        reader = ArchiveReader(source.read())
        manifest = await reader.manifest()
        target = command.on or self._host.name
        offer, notes = manifest.offer, list(manifest.notes)
        if command.name is not None and command.name != offer.container:
            offer, said = clone.as_clone(offer, command.name)
            notes += said
        volumes = clone.volume_names(manifest.offer, offer)
        changes: dict[str, Any] = {"migration": migration, "source": self._host.name, "target": target, "sent_at": None}
        if command.tcp is TcpPolicy.CLOSE:
            changes["tcp"] = TcpPolicy.CLOSE
        offer = offer.model_copy(update=changes)
        if target == self._host.name:
            await self._bring_to(Here(self._targets, target), reader, offer, volumes, notes)
        else:
            async with self._peers(target) as peer:
                await self._bring_to(peer, reader, offer, volumes, notes)
        return notes

    async def _bring_to(
        self, target: bring.Receiver, reader: ArchiveReader, offer: Offer, volumes: dict[str, str], notes: list[str]
    ) -> None:
        await bring.bring(reader, offer, volumes, target, notes)
        self._going.add(offer.migration)
        notes += await bring.let_run(target, offer)

    async def decision(self, peer: str, migration: str) -> DecisionKind:
        """The answer to a target that asks: not before its restore has ended, and then as for any move."""
        if migration in self._restoring:
            return DecisionKind.PENDING
        return await self._sources.decision(peer, migration)

    # --- both ---

    def _start(
        self, migration: str, work: Coroutine[Any, Any, Outcome], ended: Ended, decided: Callable[[], bool]
    ) -> None:
        async def run() -> None:
            tracing.works_for(migration)
            try:
                outcome = await work
            except asyncio.CancelledError:
                if not self._work[migration].cancelled:
                    raise
                outcome = Outcome(error=Cancelled("cancelled on request"))
            except Exception as failure:
                outcome = Outcome(error=foreseen(failure))
            finally:
                self._work.pop(migration, None)
            await ended(migration, outcome)

        task = asyncio.create_task(run(), name=f"vault {migration}")
        self._work[migration] = _Work(task, decided)

    def cancel(self, migration: str) -> bool:
        """Take one back that is under way; False where there is none such.

        Raises:
            Refused: it is decided.

        """
        work = self._work.get(migration)
        if work is None:
            return False
        if work.decided():
            raise Refused(ErrorCode.TOO_LATE, f"{migration} is decided: it is seen through")
        work.cancelled = True
        work.task.cancel()
        return True

    async def close(self) -> None:
        tasks = [work.task for work in self._work.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _of_policy(command: Checkpoint, subject: Subject) -> list[str]:
    name = subject.restart_policy.get("Name") or "no"
    if command.leave_running or name == "no" or subject.auto_remove:
        return []
    return [f"its restart policy is `no` until it is started again, and then `{name}`: dockerd would start it empty"]


def _without_binds(subject: Subject) -> Subject:
    """What is mounted from the host is not in the archive: it has to be where it is restored."""
    volumes = tuple(volume.model_copy(update={"copyable": False}) for volume in subject.offer.volumes)
    notes = [
        f"{volume.name} is mounted from the host, and not in the archive" for volume in volumes if volume.kind == "bind"
    ]
    return replace(subject, offer=subject.offer.model_copy(update={"volumes": volumes}), notes=(*subject.notes, *notes))
