"""TLS contexts of the peer link: 1.3 only, and both sides show a certificate of the cluster's own CA."""

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
