"""The peer link below HTTP: TLS 1.3 only, with certificates of the cluster's own CA on both sides; its time-outs."""

import socket
import ssl

from agent.base.config import PeerLink


def server_context(link: PeerLink) -> ssl.SSLContext:
    """Accepts only clients with a certificate; raises OSError or ssl.SSLError for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
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
