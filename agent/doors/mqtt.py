"""The agent's broker: keeps a connection for ever, says what there is to say, hands on what it is asked.

The broker may be away at any time; that stops nothing here (`outbox`). What came in is read strictly, and whatever
can't be read is answered. Commands done twice are not told apart here: that is the dispatcher's, by their ids.
"""

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from typing import Final

from agent.base import config
from agent.base.errors import AgentError, StepFailed
from agent.doors.mqtt_link import BrokerUnavailable, Incoming, Link, NotAllowed, connect, matches
from agent.doors.outbox import Item, Listen, Outbox, Publish
from protocol import topics
from protocol.base import WireModel, utc_now
from protocol.commands import Command, Reply, ReplyKind
from protocol.errors import ErrorCode, ErrorInfo
from protocol.reading import Unreadable, read, read_command
from protocol.status import DecisionNotice, Event, HostStatus

log = logging.getLogger("agent.mqtt")

SESSION_SECONDS: Final = 300
"""How long the broker keeps commands for an agent that is away: a restart, not an outage. An old command surprises."""
MAX_WAITING: Final = 10_000
"""What a broker that is away has not taken; a further reply or event is dropped."""
IN_FLIGHT: Final = 16
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 30.0
STABLE_SECONDS: Final = 10.0
"""A connection that lived this long starts the back-off anew: two agents of one name don't take turns at full speed."""
GOODBYE_SECONDS: Final = 3.0

Answer = Callable[[Reply], Awaitable[None]]
"""Sends a reply to where its command said, with the command's correlation data; returns at once."""
Handler = Callable[[Command, Answer], Awaitable[None]]
Recorded = Callable[[Command, Answer], Awaitable[bool]]
"""Answers a command that was done before; whether it was."""


class Broker:
    """The agent's broker. Whatever is said to it is said at once to who asks: nothing here waits for the network.

    - `publish_retained`, `set_retained`, `clear`: held here, newest word only, said again after each reconnect.
    - `publish`: an event; dropped and counted while the broker is away.
    - commands: each handled in a task of its own, which outlives the connection that it came over.
    """

    def __init__(self, settings: config.Broker, host: str, handler: Handler, recorded: Recorded | None = None) -> None:
        self._settings = settings
        self._recorded = recorded
        self._host = host
        self._handler = handler
        self._hear: Callable[[HostStatus], Awaitable[None]] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._command_topic = topics.command(host)
        self._outbox = Outbox(MAX_WAITING)
        self._inbox: asyncio.Queue[Incoming] = asyncio.Queue()
        self._swept: set[str] = set()
        self._decisions: dict[str, list[asyncio.Future[DecisionNotice]]] = {}
        self._connected = asyncio.Event()
        self._said = ""
        self._outbox.listen(self._command_topic)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    @property
    def dropped(self) -> int:
        """Events and replies that were lost since the start."""
        return self._outbox.dropped

    async def until_connected(self) -> None:
        await self._connected.wait()

    async def flush(self, seconds: float) -> bool:
        """Wait until the broker has everything; tells whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._outbox.emptied.wait()
        return self._outbox.emptied.is_set()

    def on_host_status(self, hear: Callable[[HostStatus], Awaitable[None]]) -> None:
        """Call this with what each host says of itself, this one too: what is retained first, then every change."""
        self._hear = hear
        self._outbox.listen(topics.ALL_HOSTS)

    def publish_retained(self, topic: str, model: WireModel | None, *, expiry: float | None = None) -> None:
        """Say this on a retained topic instead of what was said before; None clears the topic.

        `expiry` is in seconds: then nobody needs to know it any longer.
        """
        self._outbox.hold(topic, _wire(model), expiry)

    def clear(self, topic: str) -> None:
        self._outbox.hold(topic, b"")

    def set_retained(self, pattern: str, models: Mapping[str, WireModel]) -> None:
        """Make these all that is retained below a pattern, by topic; what an earlier life of the agent left is cleared.

        Topics that come later by `publish_retained` count as part of it.
        """
        for topic in [topic for topic in self._outbox.held if matches(topic, pattern) and topic not in models]:
            self.clear(topic)
        for topic, model in models.items():
            held, payload = self._outbox.held.get(topic), _wire(model)
            if held is None or held.payload != payload:
                self._outbox.hold(topic, payload)
        self._swept.add(pattern)
        self._outbox.sweep(pattern)

    def publish(self, topic: str, model: WireModel) -> None:
        """Say something that is not retained, once."""
        if self.connected:
            self._outbox.say(Publish(topic, _wire(model), lasting=False))
        else:
            self._outbox.dropped += 1

    async def await_decision(self, migration: str, source: str) -> DecisionNotice:
        """Wait until the source's retained decision on a migration is there; for ever, if need be."""
        topic = topics.decision(migration, source)
        waiting: asyncio.Future[DecisionNotice] = asyncio.get_running_loop().create_future()
        self._decisions.setdefault(topic, []).append(waiting)
        self._outbox.listen(topic)  # anew for each who waits: only a new subscription brings what is retained
        try:
            return await waiting
        finally:
            self._decisions[topic].remove(waiting)
            if not self._decisions[topic]:
                del self._decisions[topic]
                self._outbox.stop_listening(topic)

    async def run(self) -> None:
        """Keep the connection and hand on commands, until cancelled or closed.

        When it is cancelled, handlers end before the connection does, so what they say last still goes out.
        """
        async with asyncio.TaskGroup() as group:
            self._keeping = group.create_task(self._keep_connected(), name="broker connection")
            try:
                async with asyncio.TaskGroup() as commands:
                    while True:
                        await self._receive(await self._inbox.get(), commands)
            finally:
                await self.close()

    async def close(self) -> None:
        """Say what still waits, and `offline`, and disconnect; bounded, and safe when it is done already."""
        if self._keeping is not None and not self._keeping.done():
            self._keeping.cancel()
            await asyncio.wait({self._keeping}, timeout=3 * GOODBYE_SECONDS)

    # --- the connection

    async def _keep_connected(self) -> None:
        pause, now = FIRST_PAUSE_SECONDS, asyncio.get_running_loop().time
        status = topics.host_status(self._host)
        will = _wire(HostStatus(host=self._host, online=False))
        while True:
            began = now()
            try:
                async with connect(
                    self._settings,
                    f"transship-agent-{self._host}",
                    will=(status, will),
                    session_seconds=SESSION_SECONDS,
                ) as link:
                    await self._serve(link, will)
            except* BrokerUnavailable as errors:
                self._note(_first(errors))
            if now() - began > STABLE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _serve(self, link: Link, will: bytes) -> None:
        self._outbox.reconnected()
        self._connected.set()
        lost = f"; {self.dropped} events or replies were lost so far" if self.dropped else ""
        self._note(None, f"connected to the broker at {self._settings.host}:{self._settings.port}{lost}")
        try:
            async with asyncio.TaskGroup() as group:
                senders = [group.create_task(self._send(link), name="broker outbox") for _ in range(IN_FLIGHT)]
                try:
                    async for message in link.messages():
                        self._route(message)
                except asyncio.CancelledError:
                    if not any(
                        sender.done() for sender in senders
                    ):  # else the link is lost, and nothing can be said over it
                        await self._say_goodbye(link, will)
                    raise
        finally:
            self._connected.clear()
            self._outbox.disconnected()

    async def _say_goodbye(self, link: Link, will: bytes) -> None:
        """A clean end makes the broker forget the last will, so it has to be said."""
        await self.flush(GOODBYE_SECONDS)
        with suppress(BrokerUnavailable, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await link.publish(topics.host_status(self._host), will, retain=True)

    async def _send(self, link: Link) -> None:
        """Several do this at once; each takes the next thing and has it written before it waits, so the order stays."""
        while True:
            await self._outbox.filled.wait()
            if next_one := self._outbox.take():
                await self._send_one(link, *next_one)

    async def _send_one(self, link: Link, key: Hashable, item: Item) -> None:
        try:
            match item:
                case Publish():
                    await link.publish(
                        item.topic,
                        item.payload,
                        retain=item.retain,
                        correlation=item.correlation,
                        expiry_seconds=item.seconds_left(),
                    )
                case Listen(pattern, "off"):
                    await link.unsubscribe(pattern)
                case Listen(pattern, how):
                    await link.subscribe(pattern, qos=0 if how == "sweep" else 1)
                    if how == "sweep":
                        await link.unsubscribe(pattern)
        except NotAllowed as error:
            log.error("%s (%s)", error, error.hint)
        self._outbox.done(key, item)

    def _note(self, error: BrokerUnavailable | None, said: str = "") -> None:
        """Log a change of state once, not each attempt."""
        said = said or str(error)
        if said == self._said:
            return
        self._said = said
        if error is None:
            log.info("%s", said)
        else:
            log.warning("%s; trying again%s", said, f" ({error.hint})" if error.hint else "")

    # --- what comes in

    def _route(self, message: Incoming) -> None:
        if message.topic == self._command_topic or matches(message.topic, topics.ALL_HOSTS):
            self._inbox.put_nowait(message)
        elif message.topic in self._decisions:
            self._decide(message)
        elif message.retained and message.payload and self._is_left_over(message.topic):
            self.clear(message.topic)

    def _is_left_over(self, topic: str) -> bool:
        return topic not in self._outbox.held and any(matches(topic, pattern) for pattern in self._swept)

    def _decide(self, message: Incoming) -> None:
        if not message.payload:
            return
        try:
            notice = read(DecisionNotice, message.payload, newer=True)  # nobody else may be left who knows it
        except Unreadable as error:
            log.error("decision at %s: %s", message.topic, error)
            return
        if topics.decision(notice.migration, notice.source) != message.topic:
            log.error("decision at %s speaks of %s from %s", message.topic, notice.migration, notice.source)
            return
        for waiting in self._decisions[message.topic]:
            if not waiting.done():
                waiting.set_result(notice)

    async def _receive(self, message: Incoming, commands: asyncio.TaskGroup) -> None:
        if message.topic != self._command_topic:
            await self._heard(message)
            return
        try:
            command = read_command(message.payload)
        except Unreadable as error:
            self._reject(message, error.command, error.info)
            return
        if refusal := _refusal(message, command):
            # one that was begun in time: that its answer is asked for again now changes nothing
            answer = functools.partial(self._answer, message)
            if refusal.code is ErrorCode.EXPIRED and self._recorded and await self._recorded(command, answer):
                return
            self._reject(message, command.id, refusal)
            return
        handling = self._handle(command, functools.partial(self._answer, message))
        commands.create_task(handling, name=f"command {command.kind} {command.id}")

    async def _heard(self, message: Incoming) -> None:
        if not message.payload:
            return
        try:
            status = read(HostStatus, message.payload)
        except Unreadable as error:
            log.warning("%s: %s", message.topic, error)
            return
        if topics.host_status(status.host) != message.topic:
            log.warning("%s speaks of %s", message.topic, status.host)
            return
        ours = self._outbox.held.get(message.topic)
        if ours is not None and not status.online:
            self._outbox.hold(message.topic, ours.payload)  # the last will of a connection before this one
        elif self._hear is not None:
            try:
                await self._hear(status)
            except Exception:  # a bug there must not end the broker
                log.exception("status of %s", status.host)

    async def _handle(self, command: Command, answer: Answer) -> None:
        try:
            await self._handler(command, answer)
        except Exception as error:  # a bug there must not end the broker, nor leave the controller without an answer
            log.exception("command %s %s", command.kind, command.id)
            info = error.info() if isinstance(error, AgentError) else StepFailed(f"bug in the agent: {error!r}").info()
            await answer(self._failure(command.id, info))

    def _reject(self, message: Incoming, command: str | None, info: ErrorInfo) -> None:
        log.warning("command %s rejected: %s", command or "without an id", info.message)
        if not self._say(message, self._failure(command, info)):
            detail = {"code": str(info.code), "message": info.message, "command": command or ""}
            event = Event(host=self._host, at=utc_now(), kind="command-rejected", detail=detail)
            self.publish(topics.events(self._host), event)

    def _failure(self, command: str | None, info: ErrorInfo) -> Reply:
        return Reply(kind=ReplyKind.FAILED, host=self._host, command=command, at=utc_now(), error=info)

    async def _answer(self, message: Incoming, reply: Reply) -> None:
        self._say(message, reply)

    def _say(self, message: Incoming, reply: Reply) -> bool:
        """Tell whether there is somewhere to send the reply to."""
        topic = message.response_topic
        if not topic:
            return False
        if not _usable(topic):
            log.warning("can't reply to %r: not a topic for replies", topic)
            return False
        self._outbox.say(Publish(topic, _wire(reply), correlation=message.correlation))
        return True


def _wire(model: WireModel | None) -> bytes:
    return model.model_dump_json().encode() if model else b""


def _usable(topic: str) -> bool:
    """A reply goes nowhere where an agent speaks by itself, or a controller could make it say things there."""
    ours = topic.startswith(f"{topics.ROOT}/") and not topic.startswith(topics.replies(""))
    return not ours and not topic.startswith("$") and not set(topic) & set("+#\0")


def _refusal(message: Incoming, command: Command) -> ErrorInfo | None:
    if message.retained:
        return ErrorInfo(
            code=ErrorCode.BAD_COMMAND,
            message="this command was published as retained, so it would come again after each reconnect",
            hint="publish commands with retain off, and clear the topic",
        )
    if command.expires_at is not None and command.expires_at <= utc_now():
        return ErrorInfo(
            code=ErrorCode.EXPIRED,
            message=f"the command was not to be begun after {command.expires_at.isoformat()}",
            hint="are the clocks of the controller and of this host right?",
        )
    return None


def _first(errors: BaseExceptionGroup[BrokerUnavailable]) -> BrokerUnavailable:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BrokerUnavailable)
    return error
