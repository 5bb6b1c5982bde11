"""What anybody who reaches the address may read: plain HTTP, GET only, nothing that is asked changes anything.

Apart from the peer link: that one is for hosts with a certificate, and no browser or Prometheus has one.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from agent.base.config import Http

log = logging.getLogger("agent.http")


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpServer:
    """Listens until it is closed; not at all where no port is given."""

    def __init__(self, settings: Http) -> None:
        self._settings = settings
        self._pages: dict[str, Callable[[], Page]] = {}
        self._runner: web.AppRunner | None = None

    def serve(self, path: str, page: Callable[[], Page]) -> None:
        """Answer this path; to be said before the start."""
        self._pages[path] = page

    async def start(self) -> None:
        """Raises OSError: the port is taken, or the address is not this host's."""
        if not self._settings.port:
            return
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.listen, self._settings.port, reuse_address=True)
        await site.start()
        log.info("%s at http://%s:%d", ", ".join(self._pages), self._settings.listen, self._settings.port)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="there is nothing here\n")
        found = page()
        headers = {
            "Content-Type": found.content_type,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
            **found.headers,
        }
        return web.Response(status=found.status, body=found.body, headers=headers)
