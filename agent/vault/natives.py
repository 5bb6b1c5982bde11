"""Docker's own checkpoints for commands that come over MQTT, and for peers: one thing at a time with a container.

To another host a container goes as it goes by hand (`transship native save` and `load`): both in one tar, into one that
is made there from the same image. It has a name of its own there until it has proved to be restored, so whatever is
found by such a name is what an agent before this one has left.
"""

import asyncio
import contextlib
import logging
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from agent.base import tracing
from agent.base.errors import AgentError, Refused
from agent.base.tasks import to_the_end
from agent.doors import docker_checkpoints
from agent.doors.docker_model import Container
from agent.doors.peer_server import Stream
from agent.migration import admission, belongings, fitting, kept, spec
from agent.migration.host import Host
from agent.migration.machine import Role
from agent.migration.preflight import image_ref
from agent.migration.run import Run
from agent.migration.sources import Peers, Sources
from agent.vault import own
from agent.vault.take import read_file
from protocol.base import new_migration_id
from protocol.errors import ErrorCode
from protocol.peer import NativeOffer

log = logging.getLogger("agent.vault")

FOLDER = "native"
"""Below the agent's folder: what is on its way to another host or from one."""
COMING = re.compile(r".+\.native-(m-[0-9a-f]{16})")
TAR_SECONDS = 3600.0
MOST_OFFERED = 64
"""Offers that nothing has come of yet."""


class Natives:
    """See the module."""

    def __init__(self, host: Host, sources: Sources, peers: Peers) -> None:
        self._host = host
        self._sources = sources
        self._peers = peers
        self._offered: dict[tuple[str, str], NativeOffer] = {}
        self._coming: set[str] = set()
        self._looking: set[asyncio.Task[None]] = set()

    @property
    def _state(self) -> Path:
        return self._host.settings.state_dir

    # --- here ---

    async def names(self, container: Container) -> tuple[str, ...]:
        return tuple(await docker_checkpoints.names(self._host.docker, container.id))

    async def remove(self, container: Container, name: str) -> None:
        if name not in await self.names(container):
            raise Refused(ErrorCode.NO_SUCH_CHECKPOINT, f"{container.name} has no checkpoint {name} of Docker's own")
        await docker_checkpoints.remove(self._host.docker, container.id, name)

    async def create(self, container: Container, name: str, *, leave_running: bool) -> None:
        async with self._alone(container):
            await own.create(self._host.docker, self._state, container, name, leave_running=leave_running)

    async def start(self, container: Container, name: str, on: str | None) -> None:
        async with self._alone(container):
            if on is None:
                await own.start(self._host.docker, self._state, container, name)
            else:
                await self._send(container, name, on)

    @contextlib.asynccontextmanager
    async def _alone(self, container: Container) -> AsyncIterator[None]:
        """Nothing else is done with it meanwhile."""
        record = {"container_id": container.id}
        run = Run(
            self._host.journal, Run.entry(new_migration_id(), Role.SOURCE, container.name, self._host.name, record)
        )
        await self._sources.claim(container, run)
        try:
            yield
        finally:
            self._sources.unclaim(container.id)

    # --- to another host ---

    async def _send(self, container: Container, name: str, to: str) -> None:
        offer = await self._offer(container, name)
        tracing.works_for(offer.migration)
        with self._file(offer.migration) as file:
            command = await own.save_command(self._host.docker, container, name, file)
            async with self._peers(to) as peer:
                await peer.offer_native(offer)
                await self._host.shell.run(*command, timeout=TAR_SECONDS)
                await peer.send_native(offer.migration, read_file(file, file.stat().st_size))

    async def _offer(self, container: Container, name: str) -> NativeOffer:
        """Refused where it would start there without something that it has here."""
        docker = self._host.docker
        mounted = [mount.destination for mount in container.mounts if mount.kind in ("volume", "bind")]
        if mounted:
            raise Refused(
                ErrorCode.NOT_MIGRATABLE,
                f"what is mounted at {mounted[0]} stays here: Docker's own checkpoints do not carry it",
                hint="`transship checkpoint` carries volumes",
            )
        image = await docker.image(container.image_id)
        if image is None:
            raise Refused(ErrorCode.NOT_MIGRATABLE, f"the image of {container.name} is not here any more")
        details = await spec.describe(docker, container, image, spec.NONE)
        return NativeOffer(
            migration=new_migration_id(),
            container=container.name,
            checkpoint=name,
            create=details.create,
            restart_policy=kept.policy_of(self._state, container),
            image=image_ref(container, image),
        )

    @contextlib.contextmanager
    def _file(self, migration: str) -> Iterator[Path]:
        folder = self._state / FOLDER
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / f"{migration}.tar"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    # --- from another host ---

    async def offer(self, peer: str, offer: NativeOffer) -> None:
        docker = self._host.docker
        if len(self._coming) >= self._host.settings.limits.migrations:
            raise Refused(ErrorCode.BUSY, f"{len(self._coming)} are coming to {self._host.name}, the limit")
        await own.check_engine(docker)
        if await docker.find(offer.container) is not None:
            raise Refused(ErrorCode.NAME_TAKEN, f"there is a container named {offer.container} on {self._host.name}")
        if await belongings.find_image(docker, offer.image) is None:
            raise Refused(
                ErrorCode.INCOMPATIBLE,
                f"{self._host.name} does not have the image {offer.image.name}",
                hint=f"`docker pull {offer.image.name}` there, or `transship checkpoint --with-image`",
            )
        while len(self._offered) >= MOST_OFFERED:  # the oldest: its source has thought better of it
            del self._offered[next(iter(self._offered))]
        self._offered[peer, offer.migration] = offer

    async def take(self, peer: str, migration: str, stream: Stream) -> None:
        """Make the container, put the tar into it, start it; gone again unless it has proved to be restored."""
        offer = self._offered.pop((peer, migration), None)
        if offer is None:
            raise Refused(ErrorCode.NO_SUCH_MIGRATION, f"{migration} was not offered")
        self._coming.add(migration)
        try:
            with self._file(migration) as file:
                with file.open("wb") as tar:
                    file.chmod(0o600)
                    async for chunk in admission.while_room(self._host, aiter(stream)):
                        await asyncio.to_thread(tar.write, chunk)
                await to_the_end(self._start(offer, file))
        finally:
            self._coming.discard(migration)

    async def _start(self, offer: NativeOffer, file: Path) -> None:
        docker = self._host.docker
        image = await belongings.image_here(docker, offer.image)
        body = fitting.fit_engine({**offer.create, "Image": image.name}, (await docker.engine()).api).create
        created = await docker.create(f"{offer.container}.native-{offer.migration}", body)
        try:
            found = await docker.inspect(created)
            for command in await own.load_commands(docker, found, file):
                await self._host.shell.run(*command, timeout=TAR_SECONDS)
            await own.start(docker, self._state, found, offer.checkpoint)
            await docker.rename(created, offer.container)
            await docker.set_restart_policy(created, dict(offer.restart_policy))
        except BaseException:
            await docker.remove(created, volumes=True)
            raise

    def sweep(self) -> None:
        """Remove the files that an agent before this one has left: what was in them is with the container still."""
        shutil.rmtree(self._state / FOLDER, ignore_errors=True)

    def look(self) -> None:
        """Remove the containers that an agent before this one has left of those that were coming."""
        task = asyncio.create_task(self._remove_left(), name="remove natives that were coming")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _remove_left(self) -> None:
        try:
            for found in await self._host.docker.list():
                match = COMING.fullmatch(found.name)
                if match and match[1] not in self._coming:
                    log.warning("%s was coming when the agent ended, and is removed", found.name)
                    await self._host.docker.remove(found.id, volumes=True)
        except AgentError as error:  # dockerd is away; with its return it is looked again
            log.warning("what was coming could not be looked for: %s", error.message)

    async def close(self) -> None:
        for task in list(self._looking):
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
