"""A controller: sends commands over MQTT, and reads what hosts say. Knows nothing that docs/contract.md does not say.

It outlives a broker that is away for a while: subscriptions are made anew, and what is retained comes again.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, Self, TypeVar

from pydantic import ValidationError

from agent.base import config
from agent.base.errors import AgentError, Refused, from_wire
from agent.doors.mqtt_link import BrokerUnavailable, Incoming, Link, connect, matches
from protocol import topics
from protocol.base import WireModel, new_command_id
from protocol.commands import Command, Reply, ReplyKind
from protocol.errors import Consequence, ErrorCode
from protocol.evacuation import EvacuationState, EvacuationStatus
from protocol.reading import Unreadable, explain, read
from protocol.status import ENDED, ContainerStatus, Event, HostStatus, MigrationStatus

ANSWER_SECONDS: Final = 15.0
"""An agent answers at once; the broker drops a command that it could not deliver in this time."""
SLACK_SECONDS: Final = 2.0
AWAY_SECONDS: Final = 60.0
"""How long a broker that was there may be away."""
PAUSE_SECONDS: Final = 0.5

M = TypeVar("M", bound=WireModel)


class NoAnswer(AgentError):
    """A command was delivered and not answered: whether it was begun is not known."""

    code = ErrorCode.NO_ANSWER
    consequence = Consequence.IN_DOUBT


def checked(kind: type[M], **fields: object) -> M:
    """A new command.

    Raises:
        Refused: a field of it says what none may.

    """
    try:
        return kind.model_validate({"id": new_command_id(), **fields})
    except ValidationError as error:
        raise Refused(ErrorCode.BAD_COMMAND, "; ".join(explain(error))) from None


class _Anew(Exception):
    """The broker was away and is there again: what was said meanwhile may be lost."""


class _Ear:
    """One who listens: everything on these topics, in order; an error once the broker is given up."""

    def __init__(self, patterns: tuple[str, ...], qos: int) -> None:
        self.patterns = patterns
        self.qos = qos
        self.heard: asyncio.Queue[Incoming | Exception] = asyncio.Queue()

    async def next(self) -> Incoming:
        while True:
            with suppress(_Anew):  # what is retained comes anew
                return await self.next_or_anew()

    async def next_or_anew(self) -> Incoming:
        message = await self.heard.get()
        if isinstance(message, Exception):
            raise message
        return message


class Controller:
    """`async with Controller(settings) as controller:` - raises BrokerUnavailable if there is no broker."""

    def __init__(self, settings: config.Broker) -> None:
        self._settings = settings
        self._id = f"transship-cli-{secrets.token_hex(6)}"
        self._replies = topics.replies(self._id)
        self._ears: list[_Ear] = []
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.unreadable: list[str] = []
        """Topics on which something was said that this version does not understand."""

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep(), name="broker connection")
        up = asyncio.create_task(self._up.wait(), name="wait for the broker")
        try:
            await asyncio.wait({self._keeping, up}, return_when=asyncio.FIRST_COMPLETED)
            if self._keeping.done():
                self._keeping.result()
        except BaseException:
            await self._close()
            raise
        finally:
            up.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        assert self._keeping is not None
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    # --- what hosts say

    async def hosts(self) -> list[HostStatus]:
        return sorted(await self._retained(HostStatus, topics.ALL_HOSTS), key=lambda one: one.host)

    async def containers(self, host: str | None = None) -> list[ContainerStatus]:
        pattern = topics.container_status(host, "+") if host else topics.ALL_CONTAINERS
        return sorted(await self._retained(ContainerStatus, pattern), key=lambda one: (one.host, one.name))

    async def migrations(self) -> list[MigrationStatus]:
        return sorted(await self._retained(MigrationStatus, topics.ALL_MIGRATIONS), key=lambda one: one.started_at)

    async def migration(self, migration: str) -> MigrationStatus | None:
        """The newest status of a migration, whichever host said it."""
        found = await self._retained(MigrationStatus, topics.migration_status(migration, "+"))
        return max(found, key=lambda one: one.at, default=None)

    async def evacuations(self) -> list[EvacuationStatus]:
        """Of each host the one that goes on, or the last."""
        return sorted(await self._retained(EvacuationStatus, topics.ALL_EVACUATIONS), key=lambda one: one.started_at)

    async def events(self, host: str | None = None) -> AsyncIterator[Event]:
        """What happens from now on."""
        with self._listening(topics.events(host) if host else topics.ALL_EVENTS) as ear:
            await self._subscribe(ear)
            while True:
                if event := self._understood(Event, await ear.next()):
                    yield event

    async def watch(self) -> AsyncIterator[tuple[str, HostStatus | ContainerStatus | MigrationStatus | None]]:
        """All hosts, containers and moves by topic, then each change. None: gone; with no topic: all comes anew."""
        kinds: dict[str, type[HostStatus] | type[ContainerStatus] | type[MigrationStatus]] = {
            topics.ALL_HOSTS: HostStatus,
            topics.ALL_CONTAINERS: ContainerStatus,
            topics.ALL_MIGRATIONS: MigrationStatus,
        }
        with self._listening(*kinds, qos=0) as ear:
            await self._subscribe(ear)
            while True:
                try:
                    message = await ear.next_or_anew()
                except _Anew:
                    yield "", None
                    continue
                kind = next(kind for pattern, kind in kinds.items() if matches(message.topic, pattern))
                said = self._understood(kind, message)
                if said is not None or not message.payload:
                    yield message.topic, said

    async def watch_migration(self, migration: str, source: str) -> AsyncIterator[MigrationStatus]:
        """Each change of a migration's status, up to the one that ends it."""
        last: MigrationStatus | None = None
        with self._listening(topics.migration_status(migration, source)) as ear:
            await self._subscribe(ear)
            while last is None or last.phase not in ENDED:
                status = self._understood(MigrationStatus, await ear.next())
                if status is None or (last and status.sequence <= last.sequence and status.at <= last.at):
                    continue
                yield (last := status)

    async def watch_evacuation(self, host: str, evacuation: str) -> AsyncIterator[EvacuationStatus]:
        """Each change of it, up to the one that ends it; of others on that host nothing."""
        last = -1
        with self._listening(topics.evacuation(host)) as ear:
            await self._subscribe(ear)
            while True:
                status = self._understood(EvacuationStatus, await ear.next())
                if status is None or status.id != evacuation or status.sequence <= last:
                    continue
                last = status.sequence
                yield status
                if status.state is not EvacuationState.RUNNING:
                    return

    async def watch_moves(self, host: str) -> AsyncIterator[MigrationStatus]:
        """Each change of any migration that leaves a host, those that have ended lately too."""
        with self._listening(topics.migration_status("+", host)) as ear:
            await self._subscribe(ear)
            while True:
                if status := self._understood(MigrationStatus, await ear.next()):
                    yield status

    # --- what they are asked

    async def command(self, host: str, command: Command, *, patience: float = ANSWER_SECONDS) -> AsyncIterator[Reply]:
        """Send a command; yields each reply, up to the last.

        It is sent again when the broker was away: by its id a host knows that it is the same one.

        Raises:
            Refused: no agent of that name is known to the broker.
            NoAnswer: it was sent, and nothing came back.

        """
        correlation = secrets.token_bytes(8)

        async def send() -> None:
            listened = await self._live().publish(
                topics.command(host),
                command.model_dump_json().encode(),
                response_topic=self._replies,
                correlation=correlation,
                expiry_seconds=int(patience),
            )
            if not listened:
                raise Refused(
                    ErrorCode.HOST_OFFLINE,
                    f"no agent of {host} listens at the broker",
                    hint="`transship hosts` shows which are online",
                )

        with self._listening(self._replies) as ear:
            await send()
            try:
                async with asyncio.timeout(patience + SLACK_SECONDS):
                    reply = await self._reply(ear, correlation, send)
            except TimeoutError:
                raise NoAnswer(
                    f"{host} did not answer within {patience:g} s",
                    hint="`transship hosts` and `transship migrations` show whether it is there, and what it began",
                ) from None
            yield reply
            if reply.kind is ReplyKind.ACCEPTED:
                while reply.kind is ReplyKind.ACCEPTED:  # as often as it was sent
                    reply = await self._reply(ear, correlation, send)
                yield reply

    async def ask(self, host: str, command: Command, *, patience: float = ANSWER_SECONDS) -> Reply:
        """Send a short command; its one reply.

        Raises:
            AgentError: the host refused it, or failed at it.

        """
        replies = self.command(host, command, patience=patience)
        try:
            reply = await anext(replies)
        finally:
            await replies.aclose()  # type: ignore[attr-defined]
        if reply.error is not None:
            raise from_wire(reply.error)
        return reply

    async def _reply(self, ear: _Ear, correlation: bytes, again: Callable[[], Awaitable[None]]) -> Reply:
        while True:
            try:
                message = await ear.next_or_anew()
            except _Anew:
                with suppress(BrokerUnavailable, Refused):  # the next time, then; its agent may not be back yet
                    await again()
                continue
            if message.correlation == correlation:
                try:
                    return read(Reply, message.payload)
                except Unreadable as error:
                    raise from_wire(error.info) from None

    # --- the connection

    async def _retained(self, model: type[M], pattern: str) -> list[M]:
        """What is retained now. A broker keeps the order: what it sends to ourselves afterwards comes last."""
        token = secrets.token_bytes(8)
        # Thousands of containers are no place for QoS 1, see Link.subscribe.
        with self._listening(pattern, qos=0) as ear, self._listening(self._replies) as end:
            await self._subscribe(ear)
            await self._live().publish(self._replies, b"", correlation=token)
            while (await end.next()).correlation != token:
                pass
            await self._live().unsubscribe(pattern)
            newest = {}
            while not ear.heard.empty():
                message = await ear.next()
                newest[message.topic] = message
        found = (self._understood(model, message) for message in newest.values())
        return [one for one in found if one is not None]

    def _understood(self, model: type[M], message: Incoming) -> M | None:
        if not message.payload:
            return None
        try:
            return read(model, message.payload)
        except Unreadable:
            self.unreadable.append(message.topic)
            return None

    @contextmanager
    def _listening(self, *patterns: str, qos: int = 1) -> Iterator[_Ear]:
        ear = _Ear(patterns, qos)
        self._ears.append(ear)
        try:
            yield ear
        finally:
            self._ears.remove(ear)

    async def _subscribe(self, ear: _Ear) -> None:
        await self._live().subscribe(*ear.patterns, qos=ear.qos)

    def _live(self) -> Link:
        if self._link is None:
            raise BrokerUnavailable("the connection to the broker is lost")
        return self._link

    async def _keep(self) -> None:
        """Connect, and connect again; the first failure is the caller's, later ones only if they last."""
        try:
            given_up: float | None = None
            while True:
                try:
                    async with connect(self._settings, self._id) as link:
                        given_up = None
                        await self._serve(link)
                except BrokerUnavailable:
                    given_up = given_up or time.monotonic() + AWAY_SECONDS
                    if not self._up.is_set() or time.monotonic() > given_up:
                        raise
                await asyncio.sleep(PAUSE_SECONDS)
        except Exception as error:  # whoever listens must not wait for ever
            for ear in self._ears:
                ear.heard.put_nowait(error)
            raise

    async def _serve(self, link: Link) -> None:
        await link.subscribe(self._replies)
        for ear in self._ears:
            if ear.patterns != (self._replies,):
                await link.subscribe(*ear.patterns, qos=ear.qos)
        self._link = link
        if self._up.is_set():
            for ear in self._ears:
                ear.heard.put_nowait(_Anew())
        self._up.set()
        try:
            async for message in link.messages():
                for ear in self._ears:
                    if any(matches(message.topic, pattern) for pattern in ear.patterns):
                        ear.heard.put_nowait(message)
        finally:
            self._link = None
