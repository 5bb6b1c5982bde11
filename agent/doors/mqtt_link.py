"""The door to MQTT: one live connection to a broker, and every way in which it fails as one error with a hint.

Nothing of aiomqtt or paho gets past here. The agent keeps one by `mqtt.Broker`; a controller takes one as it is.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiomqtt
from paho.mqtt.client import Client as Paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.base import config
from agent.base.errors import AgentError
from protocol.errors import ErrorCode

_paho_log = logging.getLogger("agent.mqtt.paho")
_paho_log.setLevel(logging.CRITICAL)  # each of its complaints comes back as an exception, and is said here once

KEEPALIVE_SECONDS: Final = 15
"""A dead host is known as offline after one and a half of these."""
ACK_SECONDS: Final = 10.0
MAX_PACKET_BYTES: Final = 1 << 20
"""Larger ones the broker drops; up to here an oversized command gets its answer."""
LEAVE_SECONDS: Final = 3.0

_REFUSED: Final = 0x80
_NOBODY_LISTENS: Final = 0x10

T = TypeVar("T")


class BrokerUnavailable(AgentError):
    """There is no connection to the broker; says why."""

    code = ErrorCode.BROKER_UNAVAILABLE


class NotAllowed(BrokerUnavailable):
    """The broker is there, and its access list is against it."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came from the broker."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str = ""
    correlation: bytes | None = None


class _Client(aiomqtt.Client):
    """Keeps the broker's reason for each publish, which aiomqtt 2 passes over."""

    acks: dict[int, asyncio.Future[int]]

    @property
    def paho(self) -> Paho:
        return self._client

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the connection has ended."""
        return self._disconnected

    def _on_publish(
        self, client: Paho, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if (ack := self.acks.get(mid)) and not ack.done():
            ack.set_result(reason_code.value)


class _TlsContext(ssl.SSLContext):
    """Remembers its socket: one whose handshake fails is left open by paho."""

    socket: ssl.SSLSocket | None = None

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        self.socket = super().wrap_socket(*arguments, **options)
        return self.socket


class Link:
    """One live connection; every call on it raises BrokerUnavailable once it is lost."""

    def __init__(self, client: _Client, where: str) -> None:
        self._client = client
        self._where = where

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str = "",
        correlation: bytes | None = None,
        expiry_seconds: int | None = None,
    ) -> bool:
        """Publish at QoS 1 and wait until the broker has it; tells whether anybody is subscribed to the topic.

        Raises:
            NotAllowed: the access list is against it, or it is no topic.

        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if payload:
            properties.ContentType = "application/json"
        if response_topic:
            properties.ResponseTopic = response_topic
        if correlation is not None:
            properties.CorrelationData = correlation
        if expiry_seconds is not None:
            properties.MessageExpiryInterval = expiry_seconds
        try:
            info = self._client.paho.publish(topic, payload, 1, retain, properties)
        except ValueError as error:
            raise NotAllowed(f"can't publish to {topic!r}: {error}") from error
        ack: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._client.acks[info.mid] = ack
        try:
            reason = await self._unless_lost(ack)
        finally:
            del self._client.acks[info.mid]
        if reason >= _REFUSED:
            raise NotAllowed(f"the broker does not allow publishing to {topic}", hint=_ACL_HINT)
        return reason != _NOBODY_LISTENS

    async def subscribe(self, *patterns: str, qos: int = 1) -> None:
        """Subscribe; what is retained below the patterns comes at once.

        Where that may be thousands of messages, use QoS 0: at QoS 1 a broker drops what exceeds its queue for a client
        (mosquitto: 1000), while at QoS 0 it writes them all.
        """
        with _renamed(self._where):
            codes = await self._unless_lost(self._client.subscribe([(pattern, qos) for pattern in patterns]))
        refused = [pattern for pattern, code in zip(patterns, codes, strict=True) if _number(code) >= _REFUSED]
        if refused:
            raise NotAllowed(f"the broker does not allow subscribing to {', '.join(refused)}", hint=_ACL_HINT)

    async def unsubscribe(self, *patterns: str) -> None:
        with _renamed(self._where):
            await self._unless_lost(self._client.unsubscribe(list(patterns)))

    async def _unless_lost(self, answer: Awaitable[T]) -> T:
        """Wait for the broker's answer to something, but not on a connection that has ended."""
        waiting = asyncio.ensure_future(answer)
        either: set[asyncio.Future[Any]] = {waiting, self._client.lost}
        try:
            await asyncio.wait(either, timeout=ACK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
        finally:
            waiting.cancel()
        if self._client.lost.done():
            raise BrokerUnavailable(f"the connection to {self._where} is lost")
        raise BrokerUnavailable(f"{self._where} did not answer in {ACK_SECONDS:g} s")

    async def messages(self) -> AsyncIterator[Incoming]:
        """All that comes, until the connection is lost, which is an error."""
        with _renamed(self._where):
            async for message in self._client.messages:
                said = message.properties
                yield Incoming(
                    topic=message.topic.value,
                    payload=bytes(message.payload),
                    retained=message.retain,
                    response_topic=getattr(said, "ResponseTopic", ""),
                    correlation=getattr(said, "CorrelationData", None),
                )


def matches(topic: str, pattern: str) -> bool:
    """Whether a topic is one of those that a subscription pattern is for."""
    return aiomqtt.Topic(topic).matches(pattern)


def _number(code: object) -> int:
    return code.value if isinstance(code, ReasonCode) else int(str(code))


@asynccontextmanager
async def connect(
    settings: config.Broker, client_id: str, *, will: tuple[str, bytes] | None = None, session_seconds: int = 0
) -> AsyncIterator[Link]:
    """Connect, for as long as the block runs.

    Raises:
        BrokerUnavailable: there is no connection to be had; the block is not entered.

    """
    where = f"the broker at {settings.host}:{settings.port}"
    with _renamed(where):
        tls = await asyncio.to_thread(_tls, settings.ca) if settings.tls else None
        client = await _client(settings, client_id, will, session_seconds, tls)
        try:
            await _enter(client)
        except BaseException:
            if tls is not None and tls.socket is not None:
                tls.socket.close()
            raise
    try:
        yield Link(client, where)
    finally:
        await _leave(client)


async def _client(
    settings: config.Broker,
    client_id: str,
    will: tuple[str, bytes] | None,
    session_seconds: int,
    tls: ssl.SSLContext | None,
) -> _Client:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = session_seconds
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    client = _Client(
        settings.host,
        settings.port,
        identifier=client_id,
        username=settings.username,
        password=await asyncio.to_thread(_password, settings),
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=session_seconds == 0,
        properties=properties,
        keepalive=KEEPALIVE_SECONDS,
        timeout=ACK_SECONDS,
        will=aiomqtt.Will(will[0], will[1], qos=1, retain=True) if will else None,
        tls_context=tls,
        logger=_paho_log,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # else a command waits 40 ms for its packet
    )
    client.acks = {}
    return client


def _password(settings: config.Broker) -> str | None:
    return settings.password_file.read_text().strip() if settings.password_file else settings.password


def _tls(ca: Path | None) -> _TlsContext:
    """For clients: the server's name is checked; None is the authorities that this machine trusts."""
    context = _TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.load_default_certs()
    elif ca.exists():
        context.load_verify_locations(ca)
    else:
        raise FileNotFoundError(f"the broker's authority {ca} is not there")
    return context


async def _enter(client: _Client) -> None:
    entering = asyncio.create_task(client.__aenter__(), name="connect to broker")
    try:
        await asyncio.shield(entering)
    except asyncio.CancelledError:
        # paho connects in a thread, which no cancel reaches: see it to its end (seconds), close what it has opened
        await asyncio.wait({entering})
        if not entering.cancelled() and not entering.exception():
            await _leave(client)
        raise


async def _leave(client: _Client) -> None:
    with suppress(aiomqtt.MqttError, TimeoutError):
        async with asyncio.timeout(LEAVE_SECONDS):
            await client.__aexit__(None, None, None)


@contextmanager
def _renamed(where: str) -> Iterator[None]:
    """Turn what aiomqtt, paho, TLS and the network raise into one error that says what to do."""
    try:
        yield
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        cause = error.__cause__ if error.__cause__ is not None else error
        why = re.sub(r"^\[(code:|Errno )-?\d+\] ", "", str(cause)) or type(cause).__name__
        hint = next((hint for sign, hint in _HINTS.items() if sign in why), "")
        raise BrokerUnavailable(f"{where} is unavailable: {why}", hint=hint) from error


_ACL_HINT: Final = "see systemd/mosquitto.acl for what each side must be allowed"
_HINTS: Final = {
    "CERTIFICATE_VERIFY_FAILED": "broker.ca must be the authority that signed the broker's certificate, and broker.host"
    " a name in it",
    "WRONG_VERSION_NUMBER": "the broker does not speak TLS on this port: check broker.port and broker.tls",
    "refused": "is the broker running, and are broker.host and broker.port right?",
    "ot authori": "check broker.username and broker.password_file",
    "Bad user name": "check broker.username and broker.password_file",
    "Name or service": "check broker.host",
    "not there": "set broker.ca, or broker.tls = false for a broker without TLS",
    "Session taken over": "another client connects under the same name: each host needs a name of its own",
}
