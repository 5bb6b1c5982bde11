"""The source's end of the peer link, and a target's question for the decision: HTTPS with mutual TLS (aiohttp client).

What the peer refused is raised here as the same class of error that it was there.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import ValidationError

from agent.base.config import Deadlines, PeerLink
from agent.base.errors import Refused, TransferFailed, from_wire
from agent.base.tasks import all_of
from agent.doors.compression import ENCODING, ZSTD, Compressed, compressed
from agent.doors.pages import HEARTBEAT_SECONDS, LARGEST_MESSAGE
from agent.doors.peer_server import Stream
from agent.doors.tls import ClientTls, watch_for_death
from protocol.base import WireModel, utc_now
from protocol.errors import ErrorCode, ErrorInfo
from protocol.peer import (
    Against,
    Answer,
    Arrived,
    Checked,
    Created,
    Decision,
    Manifest,
    NativeOffer,
    Offer,
    Prepared,
    Probed,
    Question,
    Running,
    SentPart,
    Staged,
)

wire = logging.getLogger("agent.wire")

M = TypeVar("M", bound=WireModel)

PROBE_SECONDS = 0.2
PROBE_CHUNK = 256 << 10
PROBE_CHUNKS = 64
"""At most as many, where the link is fast."""
PARALLEL = 4
"""Streams at once while the container is frozen: images, writable layer, log, and mostly one volume."""

_NONE: Mapping[str, str] = {}


class PeerClient:
    """One peer, known by name; `url` says at each request where it is now, or nothing while that is not known."""

    def __init__(self, link: PeerLink, deadlines: Deadlines, name: str, url: Callable[[], str]) -> None:
        self.name = name
        self.url = url
        self._deadlines = deadlines
        try:
            self._tls = ClientTls(link)
        except OSError as error:  # ssl.SSLError is one
            raise TransferFailed(
                f"the certificates of this host are not usable: {error}", hint="`transship setup --check` says why"
            ) from None
        self._session: aiohttp.ClientSession | None = None
        self._last_base = ""
        self.answer: Answer | None = None
        """To the offer."""
        self.compresses = False
        """Whether parts are compressed on their way."""
        self.compressed = Compressed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        self._tls.look()
        if self._session is None:
            # keep-alive for long: in the blackout no handshake may be needed
            connector = aiohttp.TCPConnector(
                ssl=self._tls.context, keepalive_timeout=600, limit=8, socket_factory=_socket
            )
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    async def probe(self, migration: str) -> Probed:
        """Send for a moment, to see how fast the link is; nothing is begun there."""
        end = time.monotonic() + PROBE_SECONDS

        async def some() -> AsyncIterator[bytes]:
            for number in range(PROBE_CHUNKS):
                if number > 1 and time.monotonic() > end:  # of the first alone nothing can be told
                    return
                yield bytes(PROBE_CHUNK)

        timeout = aiohttp.ClientTimeout(total=self._deadlines.offer, sock_connect=self._deadlines.connect)
        return _parse(Probed, await self._request("PUT", migration, "/probe", some(), timeout))

    async def clock(self, migration: str) -> datetime:
        """What time it is there."""
        question = Question(offers=())
        return (await self._ask(Checked, "POST", migration, "/check", question, self._deadlines.connect)).at

    async def check(self, migration: str, offers: Sequence[Offer]) -> tuple[Against, ...]:
        """What it would say of these; nothing is begun there."""
        question = Question(offers=tuple(offers))
        checked = await self._ask(Checked, "POST", migration, "/check", question, self._deadlines.offer)
        if len(checked.answers) != len(offers):
            raise TransferFailed(f"{self.name} has answered {len(checked.answers)} of {len(offers)} questions")
        return checked.answers

    async def offer(self, offer: Offer) -> Answer:
        now = offer.model_copy(update={"sent_at": utc_now()})
        self.answer = await self._ask(Answer, "POST", offer.migration, "/offer", now, self._deadlines.offer)
        return self.answer

    async def send_layers(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._send(migration, "/layers", "layers", chunks)

    async def warm_up(self, migration: str) -> None:
        """Open as many connections as the blackout will use at once: a TLS handshake there would cost its time."""
        await all_of([self.alive(migration) for _ in range(PARALLEL)])

    async def create(self, migration: str) -> Created:
        return await self._ask(Created, "POST", migration, "/create", None, self._deadlines.stage)

    async def send_log(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._send(migration, "/log", "log", chunks)

    async def stage(self, migration: str) -> Staged:
        return await self._ask(Staged, "POST", migration, "/stage", None, self._deadlines.stage)

    async def send_files(self, migration: str, name: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._send(migration, f"/files/{name}", name, chunks)

    async def send_printed(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._send(migration, "/printed", "printed", chunks)

    async def send_images(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._send(migration, "/images", "images", chunks)

    async def send_round(self, migration: str, number: int, chunks: AsyncIterator[bytes]) -> SentPart:
        """The images of a round of pre-copy, while the container runs."""
        return await self._send(migration, f"/rounds/{number}", f"images:{number}", chunks)

    async def follow(self, migration: str) -> None:
        """After rounds of pre-copy: what is left follows when it runs."""
        await self._call("POST", migration, "/follow", None, self._deadlines.stage)

    async def prepare(self, migration: str, manifest: Manifest) -> Prepared:
        return await self._ask(Prepared, "POST", migration, "/prepare", manifest, self._deadlines.prepare)

    @asynccontextmanager
    async def pages(self, migration: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A link for the page channel, as long as the block runs.

        Raises:
            Refused, TransferFailed: it can't be made now, or has broken.

        """
        url = f"{self._base()}/v1/migrations/{migration}/pages"
        wire.debug("> peer %s pages", self.name)
        try:
            async with asyncio.timeout(self._deadlines.connect):
                link = await self._open_session().ws_connect(
                    url, server_hostname=self.name, max_msg_size=LARGEST_MESSAGE, heartbeat=HEARTBEAT_SECONDS
                )
            async with link:
                yield link
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise TransferFailed(f"the link to {self.name} failed: {error or type(error).__name__}") from error
        finally:
            wire.debug("= pages: the link to %s has ended", self.name)

    async def arrived(self, migration: str) -> Arrived:
        """Whether it has all of the memory; it takes a while to answer where that is still coming."""
        return await self._ask(Arrived, "POST", migration, "/arrived", None, self._deadlines.go)

    async def go(self, migration: str) -> Running:
        return await self._ask(Running, "POST", migration, "/go", None, self._deadlines.go)

    async def offer_native(self, offer: NativeOffer) -> None:
        await self._call("POST", offer.migration, "/native", offer, self._deadlines.offer)

    async def send_native(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        """Returns when it runs there."""
        return await self._send(migration, "/native", "native", chunks)

    async def alive(self, migration: str) -> None:
        await self._call("POST", migration, "/alive", None, self._deadlines.connect)

    async def forget(self, migration: str) -> None:
        await self._call("POST", migration, "/forget", None, self._deadlines.docker)

    async def discard(self, migration: str) -> None:
        await self._call("DELETE", migration, "", None, self._deadlines.docker)

    async def decision(self, migration: str) -> Decision:
        return await self._ask(Decision, "GET", migration, "/decision", None, self._deadlines.go)

    async def _ask(
        self, model: type[M], method: str, migration: str, what: str, message: WireModel | None, seconds: float
    ) -> M:
        return _parse(model, await self._call(method, migration, what, message, seconds))

    async def _call(self, method: str, migration: str, what: str, message: WireModel | None, seconds: float) -> bytes:
        data = message.model_dump_json().encode() if message is not None else None
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=self._deadlines.connect)
        return await self._request(method, migration, what, data, timeout)

    async def _send(self, migration: str, what: str, name: str, chunks: AsyncIterator[bytes]) -> SentPart:
        """Stream a part; the peer's hash of what it got must be ours.

        Raises:
            TransferFailed: the link broke, or nothing moved for the idle deadline.
            CorruptPart, StepFailed, Refused: what the peer made of it.

        """
        stream = Stream(chunks)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._deadlines.connect, sock_read=None)
        if self.compresses:
            body, encoding = compressed(aiter(stream), self.compressed), {ENCODING: ZSTD}
            answer = await self._request("PUT", migration, what, body, timeout, encoding)
        else:
            answer = await self._request("PUT", migration, what, stream, timeout)
        got = _parse(SentPart, answer)
        mine = stream.part(name)
        if got != mine:
            raise TransferFailed(f"{name} arrived changed: {got.bytes} of {mine.bytes} bytes, or another hash")
        return mine

    def _base(self) -> str:
        """Where the peer is now, or was last: it may have lost the broker, and not its link to here."""
        self._last_base = self.url().rstrip("/") or self._last_base
        if not self._last_base:
            raise Refused(
                ErrorCode.PEER_UNREACHABLE,
                f"the address of {self.name} is not known: it has not been heard of",
                hint="is its agent running, and connected to the same broker?",
            )
        return self._last_base

    async def _request(
        self,
        method: str,
        migration: str,
        what: str,
        data: Any,
        timeout: aiohttp.ClientTimeout,
        headers: Mapping[str, str] = _NONE,
    ) -> bytes:
        base = self._base()
        url = f"{base}/v1/migrations/{migration}{what}"
        wire.debug("> peer %s %s %s", self.name, method, what or "(discard)")
        began = time.monotonic()
        try:
            async with self._open_session().request(
                method, url, data=data, timeout=timeout, headers=headers, server_hostname=self.name
            ) as response:
                body = await response.read()
        except aiohttp.ClientConnectorCertificateError as error:
            raise Refused(
                ErrorCode.PEER_NOT_ALLOWED,
                f"{self.name} shows a certificate that is not its own or not of this cluster's CA",
                hint="issue it with `transship pki host`, from the same CA on all hosts",
                detail=(str(error),),
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise Refused(
                ErrorCode.PEER_UNREACHABLE,
                f"{self.name} can't be reached at {base}: {error.os_error}",
                hint="is its agent running, and the port open between the hosts?",
            ) from None
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise TransferFailed(f"the link to {self.name} failed: {error or type(error).__name__}") from error
        wire.debug("= peer %d in %.3f s", response.status, time.monotonic() - began)
        if response.status >= 400:
            raise _error(response.status, body, self.name)
        return body


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    watch_for_death(made)
    return made


def _parse(model: type[M], body: bytes) -> M:
    """A newer peer may say more than is known here; after the decision its answers have to be taken all the same."""
    try:
        return model.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        raise TransferFailed(f"the peer's answer is not understood: {error.errors()[0]['msg']}") from None


def _error(status: int, body: bytes, name: str) -> Exception:
    try:
        return from_wire(ErrorInfo.model_validate(json.loads(body), extra="ignore"))
    except (ValueError, ValidationError):
        return TransferFailed(f"{name} answered {status}: {body[:200].decode(errors='replace')}")
