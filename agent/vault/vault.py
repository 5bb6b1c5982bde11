"""The checkpoints and restores that are under way on this host: one task each, none twice at once, each answered."""

import asyncio
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
from agent.base.errors import AgentError, Cancelled, Refused, Stranded
from agent.base.tasks import until_it_works
from agent.doors.docker_model import Container
from agent.migration import preflight
from agent.migration.host import Host
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.migration.sources import Peers, Sources, foreseen, untouched
from agent.migration.subject import Subject
from agent.migration.targets import Targets
from agent.vault import bring, clone, registry, take
from agent.vault.here import Here
from agent.vault.places import FromPipe, FromStore, InPipe, InStore, Place, Source
from agent.vault.registry import FromRegistry, InRegistry
from agent.vault.store import Store
from protocol.base import new_command_id, new_migration_id, utc_now
from protocol.checkpoint import CheckpointInfo
from protocol.commands import Checkpoint, Migrate, Restore, TcpPolicy
from protocol.errors import ErrorCode
from protocol.peer import DecisionKind
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


class Vault:
    """See the module."""

    def __init__(self, host: Host, sources: Sources, targets: Targets, peers: Peers) -> None:
        self.store = Store(host.settings.checkpoints)
        self._host = host
        self._sources = sources
        self._targets = targets
        self._peers = peers
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._restoring: set[str] = set()
        self._wanted_off: set[str] = set()

    # --- checkpoints ---

    async def checkpoint(self, command: Checkpoint, container: Container, begun: Begun, ended: Ended) -> str:
        """Begin to take one; its id among migrations.

        Raises:
            Refused: the container is part of a move or of another checkpoint.

        """
        migration, checkpoint = new_migration_id(), secrets.token_hex(6)
        self._sources.claim(container.id, container.name, migration)
        place: Place | None = None
        try:
            unfinished = await self._host.journal.unfinished()
            others = [entry.id for entry in unfinished if entry.record.get("container_id") == container.id]
            if others:
                raise Refused(ErrorCode.BUSY, f"{container.name} is part of a move already, {others[0]}")
            place = self._place(command, container, checkpoint)
            record = {"container_id": container.id, "request": command.model_dump(mode="json")}
            entry = Run.entry(migration, Role.SOURCE, container.name, self._host.name, record)
            run = Run(self._host.journal, entry)
            await run.record_beginning()
        except BaseException:
            self._sources.unclaim(container.id)
            if place is not None:
                await place.drop()
                place.close()
            raise

        async def work() -> Outcome:
            try:
                info = await self._take(run, command, container, place, checkpoint)
                return Outcome(info, info.notes)
            finally:
                self._sources.unclaim(container.id)
                place.close()

        await self._start(migration, work(), begun, ended)
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
            taken = await take.take(run, subject, self._host, place, wanted)
        except BaseException as failure:
            await self._taken_back(run, failure)
            raise
        await until_it_works(run.id, lambda: run.enter(Phase.ROLLED_BACK), self._host.settings.deadlines.ask_again)
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
            notes=tuple(dict.fromkeys((*subject.notes, *run.notes))),
        )
        await place.note(info)
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
        """The undo has run by now; where it could not, recovery tries it until it works."""
        if run.undo_failed:
            self._sources.take_over(run)
            if isinstance(failure, AgentError):
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

        async def work() -> Outcome:
            self._restoring.add(migration)
            try:
                return Outcome(notes=tuple(await self._bring(migration, command, source)))
            finally:
                self._restoring.discard(migration)
                source.close()

        await self._start(migration, work(), begun, ended)
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
        changes: dict[str, Any] = {"migration": migration, "source": self._host.name, "target": target}
        if command.tcp is TcpPolicy.CLOSE:
            changes["tcp"] = TcpPolicy.CLOSE
        offer = offer.model_copy(update=changes)
        if target == self._host.name:
            await bring.bring(reader, offer, volumes, Here(self._targets, target), notes)
        else:
            async with self._peers(target) as peer:
                await bring.bring(reader, offer, volumes, peer, notes)
        return notes

    async def decision(self, peer: str, migration: str) -> DecisionKind:
        """The answer to a target that asks: not before its restore has ended, and then as for any move."""
        if migration in self._restoring:
            return DecisionKind.PENDING
        return await self._sources.decision(peer, migration)

    # --- both ---

    async def _start(self, migration: str, work: Coroutine[Any, Any, Outcome], begun: Begun, ended: Ended) -> None:
        async def run() -> None:
            try:
                outcome = await work
            except asyncio.CancelledError:
                if migration not in self._wanted_off:
                    raise
                outcome = Outcome(error=Cancelled("cancelled on request"))
            except Exception as failure:
                outcome = Outcome(error=foreseen(failure))
            finally:
                self._tasks.pop(migration, None)
                self._wanted_off.discard(migration)
            await ended(migration, outcome)

        try:
            await begun(migration)
        except BaseException:
            work.close()
            raise
        self._tasks[migration] = asyncio.create_task(run(), name=f"vault {migration}")

    def cancel(self, migration: str) -> bool:
        """Take one back that is under way; False where there is none such."""
        task = self._tasks.get(migration)
        if task is None:
            return False
        self._wanted_off.add(migration)
        task.cancel()
        return True

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _without_binds(subject: Subject) -> Subject:
    """What is mounted from the host is not in the archive: it has to be where it is restored."""
    volumes = tuple(volume.model_copy(update={"copyable": False}) for volume in subject.offer.volumes)
    notes = [
        f"{volume.name} is mounted from the host, and not in the archive" for volume in volumes if volume.kind == "bind"
    ]
    return replace(subject, offer=subject.offer.model_copy(update={"volumes": volumes}), notes=(*subject.notes, *notes))
