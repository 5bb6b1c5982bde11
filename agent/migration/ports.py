"""Published ports: which a container wants by number, whether this host has them to give, and others instead."""

import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from protocol.errors import Reason, Why
from protocol.peer import Listening
from protocol.reasons import against

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - tried, not listened on


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host; `ip` is empty for all of its addresses."""

    inner: str
    """In the container, as Docker writes it: 80/tcp. On the host's network it is the port itself."""
    ip: str
    number: int

    @property
    def protocol(self) -> str:
        return self.inner.partition("/")[2] or "tcp"

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


def published(create: Mapping[str, Any]) -> tuple[Port, ...]:
    """The ports that it publishes by number."""
    return tuple(_published((create.get("HostConfig") or {}).get("PortBindings") or {}))


def _published(bindings: Mapping[str, Any]) -> Iterator[Port]:
    for inner, places in bindings.items():
        for place in places or ():
            number = str(place.get("HostPort") or "")
            if number.isdigit() and number != "0":
                yield Port(inner, place.get("HostIp") or "", int(number))


def listening(sockets: Iterable[Listening]) -> tuple[Port, ...]:
    """The ports of a container on the host's network; one port for IPv4 and IPv6 is one."""
    said = [(f"{each.port}/{each.protocol}", "" if each.address in EVERYWHERE else each.address) for each in sockets]
    return tuple(Port(inner, ip, int(inner.partition("/")[0])) for inner, ip in dict.fromkeys(said))


def clashing(wanted: Collection[Port], promised: Iterable[Port] = ()) -> tuple[Port, ...]:
    """Those that are taken here, by whatever program, or promised to another container."""
    theirs = {str(port) for port in promised}
    return tuple(port for port in wanted if str(port) in theirs or _trial(port) in (errno.EADDRINUSE, errno.EACCES))


def without_address(create: Mapping[str, Any]) -> tuple[Port, ...]:
    """Those that are published on an address which this host has not."""
    return tuple(port for port in published(create) if _trial(port) == errno.EADDRNOTAVAIL)


def _trial(port: Port) -> int:
    """Bind it for a moment; 0, or the error. Docker itself holds a socket for each port that it publishes."""
    kind = KINDS.get(port.protocol)
    for place in ((port.ip,) if port.ip else EVERYWHERE) if kind is not None else ():
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        try:
            with socket.socket(family, kind or 0) as trial:
                if kind == socket.SOCK_STREAM:  # what is left of connections that have ended holds no port
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind((place, port.number))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # without IPv6, Docker publishes on IPv4 alone
                return error.errno or errno.EADDRINUSE
    return 0


def remapped(create: dict[str, Any], clashes: Collection[Port]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body with these ports left to Docker's choice, and a note for each."""
    if not clashes:
        return create, ()

    def fit(inner: str, place: Mapping[str, Any]) -> dict[str, Any]:
        wanted = (inner, place.get("HostIp") or "", str(place.get("HostPort") or ""))
        clash = wanted in {(port.inner, port.ip, str(port.number)) for port in clashes}
        return {**place, "HostPort": ""} if clash else dict(place)

    bindings = create["HostConfig"].get("PortBindings") or {}
    fitted = {inner: [fit(inner, place) for place in places or ()] for inner, places in bindings.items()}
    notes = tuple(f"port {port} is taken there: {port.inner} gets another of Docker's choice" for port in clashes)
    return {**create, "HostConfig": {**create["HostConfig"], "PortBindings": fitted}}, notes


def reasons(
    create: Mapping[str, Any], policy: str, promised: Collection[Port], held: Collection[Port] = ()
) -> Iterator[Reason]:
    """What stands against taking a container with these ports."""
    for port in clashing(published(create), promised) if policy == "refuse" else ():
        hint = 'free it on the target, or set port_policy = "remap" there'
        yield against(Why.PORT_TAKEN, f"port {port}, which it publishes, is taken", hint)
    for port in clashing(held, promised):
        message = f"port {port}, which it holds on the host's network, is taken"
        yield against(Why.PORT_TAKEN, message, "free it on the target")
    for port in without_address(create):
        message = f"it publishes {port.inner} on {port.ip}, which is no address of the target"
        yield against(Why.ADDRESS_OUTSIDE, message, "publish it on all addresses, or on one that both hosts have")
