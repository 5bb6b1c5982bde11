"""Certificates that end, and certificates that were changed: said in good time, taken up without a restart.

The doors of the peer link read changed files by themselves, with the next connection. This says so, and says when one
is about to end: in the log once a day, in the host's status, and as an event.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.announcer import Announcer
from agent.base import pki
from agent.base.config import Settings
from agent.doors import tls
from protocol.base import utc_now
from protocol.status import Event

log = logging.getLogger("agent.certificates")

LOOK_SECONDS = 30.0
"""Between two looks at the files, which cost some microseconds."""
SAY_AGAIN = timedelta(days=1)


class Certificates:
    """Looks at the host's certificates until it is cancelled; at once when it is told to."""

    def __init__(
        self,
        settings: Settings,
        announcer: Announcer,
        reload: Callable[[], None],
        connected: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._announcer = announcer
        self._reload = reload
        self._connected = connected
        link, broker = settings.peer, settings.broker
        self._files = [
            link.certificate,
            link.ca,
            *([broker.ca] if broker.tls and broker.ca not in (None, link.ca) else []),
        ]
        self._secret = [link.key, *([broker.password_file] if broker.password_file else [])]
        self._told = asyncio.Event()
        self._seen: tuple[object, ...] = ()
        self._said = ("", datetime.min.replace(tzinfo=UTC))

    def look_now(self) -> None:
        """Somebody has changed them (SIGHUP)."""
        self._seen = ()
        self._told.set()

    async def run(self) -> None:
        for file in self._secret:
            if readable_by_others(file):
                log.warning("%s can be read by others than root: chmod 600 %s", file, file)
        while True:
            self._told.clear()
            seen = (tls.stamp(*self._files, self._settings.peer.key), utc_now().date())
            if seen != self._seen:  # a change, or another day
                self._seen = seen
                self._reload()
                await self._say()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._told.wait()

    async def _say(self) -> None:
        until, warning = look(self._files, self._settings.peer.expiry_warning_days, utc_now())
        await self._announcer.certificates(until, warning)
        last, at = self._said
        if warning and (warning != last or utc_now() - at >= SAY_AGAIN):
            log.warning("%s", warning)
            detail = {"message": warning, "until": until.isoformat() if until else ""}
            event = Event(host=self._settings.host, at=utc_now(), kind="certificates-warning", detail=detail)
            with contextlib.suppress(TimeoutError):  # the status is kept for a broker that comes back; an event is not
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._connected()
            await self._announcer.publish_event(event)
        elif last and not warning:
            log.info("the certificates are good until %s", until)
        self._said = (warning, utc_now() if warning else at)


def look(files: list[Path], days: float, now: datetime) -> tuple[datetime | None, str]:
    """When the first of them ends, and what there is to say about that."""
    first: tuple[datetime, Path] | None = None
    for file in files:
        try:
            until = pki.expiry(file.read_bytes())
        except (OSError, ValueError) as error:
            return None, f"{file} is not usable: {error}"
        if first is None or until < first[0]:
            first = until, file
    if first is None:
        return None, ""
    until, file = first
    left = until - now
    hint = "`transship pki host --force` makes new ones, and they are taken up without a restart"
    if left <= timedelta(0):
        return until, f"{file} has ended at {until:%Y-%m-%d %H:%M}: no peer takes it any more; {hint}"
    if left < timedelta(days=days):
        return until, f"{file} ends in {left.days} days, at {until:%Y-%m-%d %H:%M}; {hint}"
    return until, ""


def readable_by_others(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & 0o077)
    except OSError:
        return False
