"""The dashboard as an agent serves it: a page that talks to the broker by itself, in the reader's browser.

No figure of this agent is in it, and no password: whoever opens it signs in at the broker, whose access list decides
what is seen and done. `source/` is what it is written in, `built/` what `scripts/dashboard` makes of that.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.doors.http_server import Page

BUILT = Path(__file__).parent / "built"
ROOT = "/dashboard/"
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""No script but ours; and what came from the broker can't become markup, even by a mistake of ours."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def pages(broker_url: str) -> Iterator[tuple[str, Callable[[], Page]]]:
    """Path and answer of each; `broker_url` is where a browser reaches the broker (ws: or wss:), if that is known."""

    def file(name: str, kind: str) -> Callable[[], Page]:
        return lambda: Page((BUILT / name).read_bytes(), kind, headers=HEADERS)

    for name, kind in TYPES.items():
        yield ROOT + name, file(name, kind)
    yield ROOT, file("index.html", TYPES["index.html"])
    for path in ("/", ROOT.rstrip("/")):
        yield path, lambda: Page(b"", "text/plain", status=302, headers={"Location": ROOT})
    yield ROOT + "broker.json", lambda: Page(json.dumps({"url": broker_url}).encode(), "application/json")
