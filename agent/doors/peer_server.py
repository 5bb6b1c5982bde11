"""The target's end of the peer link, and the source's answer for the decision: HTTPS with mutual TLS (aiohttp.web).

A peer is who its certificate says, and must be allowed by the configuration. What is asked is passed on to a
`PeerHandler`; what it raises goes back as `ErrorInfo`.
"""

import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from agent.base import tracing
from agent.base.config import PeerLink
from agent.base.errors import AgentError, CorruptPart, Refused, TransferFailed
from agent.doors import pages
from agent.doors.compression import ENCODING, ZSTD, decompressed
from agent.doors.tls import ServerTls, watch_for_death
from protocol.base import WireModel
from protocol.errors import Consequence, ErrorCode, ErrorInfo
from protocol.peer import (
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

log = logging.getLogger("agent.peer")
wire = logging.getLogger("agent.wire")

M = TypeVar("M", bound=WireModel)

LARGEST_MESSAGE = 16 << 20
"""A manifest or offer; streams have no such limit."""
READ_BUFFER = 1 << 20


class Stream:
    """The body of a request as it comes or goes, hashed and counted on the way."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._hash.update(chunk)
            self.bytes += len(chunk)
            yield chunk

    def part(self, name: str) -> SentPart:
        return SentPart(name=name, sha256=self._hash.hexdigest(), bytes=self.bytes)


class PeerHandler(Protocol):
    """What the agent does for a peer; `peer` is the name in its certificate."""

    async def probe(self, peer: str, stream: Stream) -> Probed: ...
    async def check(self, peer: str, question: Question) -> Checked: ...
    async def offer(self, peer: str, offer: Offer) -> Answer: ...
    async def layers(self, peer: str, migration: str, stream: Stream) -> None: ...
    async def create(self, peer: str, migration: str) -> Created: ...
    async def log(self, peer: str, migration: str, stream: Stream) -> None: ...
    async def stage(self, peer: str, migration: str) -> Staged: ...
    async def files(self, peer: str, migration: str, name: str, stream: Stream) -> None: ...
    async def printed(self, peer: str, migration: str, stream: Stream) -> None: ...
    async def images(self, peer: str, migration: str, stream: Stream) -> None: ...
    async def round(self, peer: str, migration: str, number: int, stream: Stream) -> None: ...
    async def follow(self, peer: str, migration: str) -> None: ...
    async def prepare(self, peer: str, migration: str, manifest: Manifest) -> Prepared: ...
    async def pages(self, peer: str, migration: str, socket: pages.WebSocket) -> None: ...
    async def arrived(self, peer: str, migration: str) -> Arrived: ...
    async def go(self, peer: str, migration: str) -> Running: ...
    async def alive(self, peer: str, migration: str) -> None: ...
    async def forget(self, peer: str, migration: str) -> None: ...
    async def discard(self, peer: str, migration: str) -> None: ...
    async def decision(self, peer: str, migration: str) -> Decision: ...


class NativeHandler(Protocol):
    """What the agent does with a container that comes by Docker's own checkpoint."""

    async def offer(self, peer: str, offer: NativeOffer) -> None: ...
    async def take(self, peer: str, migration: str, stream: Stream) -> None: ...


class PeerServer:
    """Listens for peers until it is closed."""

    def __init__(self, link: PeerLink, handler: PeerHandler, native: NativeHandler) -> None:
        self._link = link
        self._handler = handler
        self._native = native
        self._runner: web.AppRunner | None = None
        self._tls: ServerTls | None = None
        self.received = 0
        """Bytes of parts that came from peers, without those of the page channel."""

    async def start(self) -> None:
        """Raises OSError or ssl.SSLError: the certificates are unusable, or the port is taken."""
        app = web.Application(middlewares=[self._gate], client_max_size=LARGEST_MESSAGE)
        one = "/v1/migrations/{id}"
        app.add_routes(
            [
                web.put(f"{one}/probe", self._probe),
                web.post(f"{one}/check", self._check),
                web.post(f"{one}/offer", self._offer),
                web.put(f"{one}/layers", self._layers),
                web.post(f"{one}/create", self._create),
                web.put(f"{one}/log", self._log),
                web.post(f"{one}/stage", self._stage),
                web.put(f"{one}/files/{{name:.+}}", self._files),
                web.put(f"{one}/printed", self._printed),
                web.put(f"{one}/images", self._images),
                web.put(f"{one}/rounds/{{number:[1-9][0-9]?}}", self._round),
                web.post(f"{one}/follow", self._follow),
                web.post(f"{one}/prepare", self._prepare),
                web.get(f"{one}/pages", self._pages),
                web.post(f"{one}/arrived", self._arrived),
                web.post(f"{one}/go", self._go),
                web.post(f"{one}/native", self._native_offer),
                web.put(f"{one}/native", self._native_take),
                web.post(f"{one}/alive", self._alive),
                web.post(f"{one}/forget", self._forget),
                web.delete(one, self._discard),
                web.get(f"{one}/decision", self._decision),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, read_bufsize=READ_BUFFER, shutdown_timeout=2.0)
        await self._runner.setup()
        self._tls = ServerTls(self._link)
        site = web.TCPSite(
            self._runner, self._link.listen, self._link.port, ssl_context=self._tls.context, reuse_address=True
        )
        await site.start()

    def reload(self) -> None:
        """Take up certificates that have changed now, not with the next connection."""
        if self._tls is not None:
            self._tls.look()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        with tracing.working_for(request.match_info.get("id", "")):
            return await self._answered(request, handler)

    async def _answered(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            peer = peer_name(request)
            if peer not in self._link.allow:
                raise Refused(
                    ErrorCode.PEER_NOT_ALLOWED,
                    f"{peer or 'a caller without a name'} is not an allowed peer of this host",
                    hint="add it to peer.allow in agent.toml",
                )
            if request.transport is not None and (sock := request.transport.get_extra_info("socket")) is not None:
                watch_for_death(sock)
            wire.debug("< peer %s %s %s", peer, request.method, request.path)
            return await handler(request)
        except AgentError as error:
            return _refusal(error.info(), error.status)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            info = ErrorInfo(
                code=ErrorCode.BAD_COMMAND, message=f"the message is not understood: {where}: {first['msg']}"
            )
            return _refusal(info, 400)
        except web.HTTPException:
            raise
        except ConnectionError as error:
            return _refusal(TransferFailed(f"the stream broke: {error}").info(), 502)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            info = ErrorInfo(
                code=ErrorCode.INTERNAL,
                message=f"{type(error).__name__}: {error}",
                consequence=Consequence.TAKEN_BACK,
            )
            return _refusal(info, 500)

    async def _probe(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.probe(peer_name(request), _stream(request)))

    async def _check(self, request: web.Request) -> web.Response:
        question = await _message(request, Question)
        if any(offer.source != peer_name(request) for offer in question.offers):
            raise Refused(ErrorCode.PEER_NOT_ALLOWED, "the offers are not the caller's own")
        return _answer(await self._handler.check(peer_name(request), question))

    async def _offer(self, request: web.Request) -> web.Response:
        offer = await _message(request, Offer)
        if offer.migration != request.match_info["id"] or offer.source != peer_name(request):
            raise Refused(ErrorCode.PEER_NOT_ALLOWED, "the offer is not the caller's own")
        return _answer(await self._handler.offer(peer_name(request), offer))

    async def _native_offer(self, request: web.Request) -> web.Response:
        offer = await _message(request, NativeOffer)
        if offer.migration != request.match_info["id"]:
            raise Refused(ErrorCode.BAD_COMMAND, "the offer is of another migration")
        await self._native.offer(peer_name(request), offer)
        return web.Response(status=204)

    async def _native_take(self, request: web.Request) -> web.Response:
        return await self._take(request, "native", self._native.take)

    async def _take(
        self, request: web.Request, name: str, take: Callable[[str, str, Stream], Awaitable[None]]
    ) -> web.Response:
        stream = _stream(request)
        try:
            await take(peer_name(request), request.match_info["id"], stream)
        finally:
            self.received += stream.bytes
        return _answer(stream.part(name))

    async def _layers(self, request: web.Request) -> web.Response:
        return await self._take(request, "layers", self._handler.layers)

    async def _create(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.create(peer_name(request), request.match_info["id"]))

    async def _log(self, request: web.Request) -> web.Response:
        return await self._take(request, "log", self._handler.log)

    async def _printed(self, request: web.Request) -> web.Response:
        return await self._take(request, "printed", self._handler.printed)

    async def _stage(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.stage(peer_name(request), request.match_info["id"]))

    async def _files(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]

        async def take(peer: str, migration: str, stream: Stream) -> None:
            await self._handler.files(peer, migration, name, stream)

        return await self._take(request, name, take)

    async def _images(self, request: web.Request) -> web.Response:
        return await self._take(request, "images", self._handler.images)

    async def _round(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])

        async def take(peer: str, migration: str, stream: Stream) -> None:
            await self._handler.round(peer, migration, number, stream)

        return await self._take(request, f"images:{number}", take)

    async def _follow(self, request: web.Request) -> web.Response:
        await self._handler.follow(peer_name(request), request.match_info["id"])
        return web.Response(status=204)

    async def _prepare(self, request: web.Request) -> web.Response:
        manifest = await _message(request, Manifest)
        return _answer(await self._handler.prepare(peer_name(request), request.match_info["id"], manifest))

    async def _pages(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            max_msg_size=pages.LARGEST_MESSAGE, compress=False, heartbeat=pages.HEARTBEAT_SECONDS
        )
        await socket.prepare(request)
        try:
            await self._handler.pages(peer_name(request), request.match_info["id"], socket)
        except AgentError as error:  # there is no other answer to a link that is up
            wire.debug("= pages: %s", error)
        finally:
            await socket.close()
        return socket

    async def _arrived(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.arrived(peer_name(request), request.match_info["id"]))

    async def _go(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.go(peer_name(request), request.match_info["id"]))

    async def _alive(self, request: web.Request) -> web.Response:
        await self._handler.alive(peer_name(request), request.match_info["id"])
        return web.Response(status=204)

    async def _forget(self, request: web.Request) -> web.Response:
        await self._handler.forget(peer_name(request), request.match_info["id"])
        return web.Response(status=204)

    async def _discard(self, request: web.Request) -> web.Response:
        await self._handler.discard(peer_name(request), request.match_info["id"])
        return web.Response(status=204)

    async def _decision(self, request: web.Request) -> web.Response:
        return _answer(await self._handler.decision(peer_name(request), request.match_info["id"]))


def peer_name(request: web.Request) -> str:
    """The common name in the caller's certificate; TLS has verified it."""
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


async def _message(request: web.Request, model: type[M]) -> M:
    return model.model_validate_json(await request.read())


def _stream(request: web.Request) -> Stream:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            async for chunk in request.content.iter_any():
                yield chunk
        except web.HTTPException:
            raise
        except Exception as error:
            raise CorruptPart(f"the stream from the peer broke: {error or type(error).__name__}") from error

    if (encoding := request.headers.get(ENCODING)) is None:
        return Stream(chunks())
    if encoding != ZSTD:
        raise Refused(ErrorCode.BAD_COMMAND, f"a part is compressed in a way that is not known here: {encoding[:20]}")
    return Stream(decompressed(chunks()))


def _answer(model: WireModel) -> web.Response:
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")


def _refusal(info: ErrorInfo, status: int) -> web.Response:
    # the rest of a stream that nobody reads would be taken for the next request
    response = web.Response(status=status, body=info.model_dump_json().encode(), content_type="application/json")
    response.force_close()
    return response
