"""Certificates that end, and certificates that were changed: said in good time, taken up without a restart.

The doors of the peer link read changed files by themselves, with the next connection. This says so, and says when one
is about to end: in the log once a day, in the host's status, and as an event.

What reads a certificate is a process of its own: the library for it would take 8 MiB of every agent for good.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.announcer import Announcer
from agent.base.config import Settings
from agent.base.errors import AgentError
from agent.base.shell import Shell
from agent.doors import tls
from protocol.base import utc_now
from protocol.status import Event

log = logging.getLogger("agent.certificates")

LOOK_SECONDS = 30.0
"""Between two looks at the files, which cost some microseconds."""
SAY_AGAIN = timedelta(days=1)
READ_SECONDS = 60.0
"""For a process that reads them; it takes a fifth of a second."""


class Certificates:
    """Looks at the host's certificates until it is cancelled; at once when it is told to."""

    def __init__(
        self,
        settings: Settings,
        announcer: Announcer,
        reload: Callable[[], None],
        connected: Callable[[], Awaitable[None]],
        shell: Shell,
    ) -> None:
        self._settings = settings
        self._announcer = announcer
        self._reload = reload
        self._connected = connected
        self._shell = shell
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
        days = self._settings.peer.expiry_warning_days
        until, warning = look(self._files, await ends(self._shell, self._files), days, utc_now())
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


async def ends(shell: Shell, files: Sequence[Path]) -> list[str]:
    """What agent/base/pki.py says of each file: when it ends, or after a `!` what is wrong with it."""
    argv = (sys.executable, "-P", "-m", "agent.base.pki", *map(str, files))
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = await shell.run(*argv, label="certificates", env=path, timeout=READ_SECONDS)
    except AgentError as error:
        return [f"!{error}"] * len(files)
    return done.stdout.splitlines()


def look(files: Sequence[Path], said: Sequence[str], days: float, now: datetime) -> tuple[datetime | None, str]:
    """When the first of them ends, by what `ends` has said, and what there is to say about that."""
    first: tuple[datetime, Path] | None = None
    for file, word in zip(files, said, strict=True):
        if word.startswith("!"):
            return None, f"{file} is not usable: {word[1:]}"
        until = datetime.fromisoformat(word)
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
