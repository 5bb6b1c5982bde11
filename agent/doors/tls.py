"""The peer link below HTTP: TLS 1.3 only, with certificates of the cluster's own CA on both sides; its time-outs."""

import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from agent.base.config import PeerLink

log = logging.getLogger("agent.peer")


def server_context(link: PeerLink) -> ssl.SSLContext:
    """Accepts only clients with a certificate; raises OSError or ssl.SSLError for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no resumption: each connection shows its certificate, which may have ended meanwhile
    return _common(context, link)


def client_context(link: PeerLink) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True  # against the peer's name, whatever address it is reached at
    return _common(context, link)


def _common(context: ssl.SSLContext, link: PeerLink) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(link.ca)
    context.load_cert_chain(link.certificate, link.key)
    return context


Stamp = tuple[tuple[int, int, int], ...]


def stamp(*files: Path) -> Stamp:
    """Changes with any of the files; a file that is not there counts as one that has changed."""
    found = []
    for file in files:
        try:
            stat = file.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


class _Files:
    """The certificate files: whether they have changed, and what is done then.

    Files are changed one by one, and those of the moment between do not fit each other: then the old ones stay in use.
    """

    def __init__(self, link: PeerLink, take_up: Callable[[], None]) -> None:
        self._link = link
        self._take_up = take_up
        self._stamp = self._now()

    def _now(self) -> Stamp:
        return stamp(self._link.ca, self._link.certificate, self._link.key)

    def look(self) -> bool:
        """Take up files that have changed, if they are usable; whether they were. Some microseconds if they are not."""
        now = self._now()
        if now == self._stamp:
            return False
        self._stamp = now
        try:
            self._take_up()
        except (OSError, ssl.SSLError) as error:
            log.warning("the certificates have changed and are not usable; those before stay in use: %s", error)
            return False
        return True


class ServerTls:
    """For a listening socket. What is connected goes on; each new connection is shown, and checked by, the newest."""

    def __init__(self, link: PeerLink) -> None:
        """Raises OSError or ssl.SSLError: the files are unusable."""
        self._link = link
        self.look = _Files(link, self._take_up).look
        self.context = server_context(link)
        """For the socket, as long as it listens."""
        self.context.sni_callback = self._newest
        self._current: ssl.SSLContext | None = None

    def _take_up(self) -> None:
        self._current = server_context(self._link)
        log.info("peers are shown the certificate that is in %s now", self._link.certificate)

    def _newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called early in each handshake: certificate, key and authority are those of the context set here."""
        self.look()
        if self._current is not None:
            connection.context = self._current


class ClientTls:
    """For connections to one peer; its open ones go on, and are found again by the same context."""

    def __init__(self, link: PeerLink) -> None:
        """Raises OSError or ssl.SSLError: the files are unusable."""
        self._link = link
        self.look = _Files(link, self._take_up).look
        self.context = client_context(link)

    def _take_up(self) -> None:
        client_context(self._link)  # first on one that nobody uses: half of a pair would spoil it
        _common(self.context, self._link)


KEEPALIVE_SECONDS = 2
PROBES = 3


def watch_for_death(sock: socket.socket) -> None:
    """Make a silent link an error within about `KEEPALIVE_SECONDS * (PROBES + 1)` seconds.

    A container may be frozen meanwhile. Keep-alive probes find a link that is dead while nothing is sent, the user
    time-out (tcp(7)) one that is dead while something is.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * (PROBES + 1) * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
