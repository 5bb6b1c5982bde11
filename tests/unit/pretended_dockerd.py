"""A pretended dockerd on a real UNIX socket, and the door before it. No tests."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.doors.docker import Docker

ID = "75f810d66b787b9e643f21116e309357c255fe93cf6055f918f80e29a4a2a905"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dockerd:
    """Answers what a test tells it to, and remembers what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.url = f"unix://{socket}"
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.api = "1.45"
        self.gone = asyncio.Event()
        """A client has gone before it was answered."""
        self._handlers: dict[str, Handler] = {}
        self._socket = socket
        self._runner: web.AppRunner | None = None

    def on(self, what: str, answer: Handler | Any = None, status: int = 200) -> None:
        async def fixed(request: web.Request) -> web.Response:
            return web.json_response(answer, status=status) if answer is not None else web.Response(status=status)

        self._handlers[what] = answer if callable(answer) else fixed

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        # As dockerd does: a handler is cancelled when its client goes.
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._socket.unlink(missing_ok=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        self.asked.append(what + (f"?{request.query_string}" if request.query_string else ""))
        if what == "GET /version":
            return web.json_response({"ApiVersion": self.api, "Version": "x"})
        what = re.sub(r"/v1\.\d+", "", what)
        handler = self._handlers.get(what)
        if handler is None:
            return web.json_response({"message": f"no such thing: {what}"}, status=404)
        try:
            return await handler(request)
        except asyncio.CancelledError:
            self.gone.set()
            raise


async def dockerd(tmp_path: Path) -> AsyncIterator[Dockerd]:
    found = Dockerd(tmp_path / "d.sock")
    await found.start()
    yield found
    await found.stop()


async def docker(dockerd: Dockerd) -> AsyncIterator[Docker]:
    async with Docker(dockerd.url, timeout=5) as door:
        yield door


def connections(door: Docker) -> int:
    assert door._opened is not None
    return len(door._opened[1]._acquired)


async def forever(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError
