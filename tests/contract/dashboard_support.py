"""The dashboard in a real browser: the page as an agent serves it, and waits that come to an end. No tests."""

import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from agent import dashboard
from agent.base.config import Http
from agent.doors.http_server import HttpServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(__file__).parents[2] / "docs/pictures"
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        # no sandbox: tests run as root
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield found
        finally:
            await found.close()


@asynccontextmanager
async def opened(browser: Browser, url: str, *, blocked: str = "", **context: Any) -> AsyncIterator[Page]:
    """A page in a context of its own; what goes wrong in it fails the test, but for what is `blocked` on purpose."""
    async with await browser.new_context(**context) as made:
        page = await made.new_page()
        page.set_default_timeout(PATIENCE_MS)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        await page.goto(url)
        yield page
        foreseen = ("WebSocket connection", *filter(None, [blocked]))
        assert not [one for one in wrong if not any(word in one for word in foreseen)], wrong


@asynccontextmanager
async def served(broker_url: str) -> AsyncIterator[str]:
    """The page as an agent serves it; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = HttpServer(Http(port=port, dashboard=True, broker_url=broker_url))
    for path, page in dashboard.pages(broker_url):
        server.serve(path, page)
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}/dashboard/"
    finally:
        await server.close()


async def for_everybody(page: Page) -> None:
    """Contrast, names for a screen reader, the order of headings, what the keyboard reaches: as axe-core sees it."""
    found = await Axe().run(page)
    wrong = [(one["id"], one["help"], one["nodes"][0]["html"]) for one in found.response["violations"]]
    assert not wrong, wrong


async def picture(page: Page, name: str, of: str = "") -> None:
    """For docs; as it is once what moves has come to rest. Written where that is asked for: no two are the same."""
    if not os.environ.get("TRANSSHIP_PICTURES"):
        return
    await page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")
    await (page.locator(of) if of else page).screenshot(path=PICTURES / f"{name}.png")
