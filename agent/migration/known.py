"""The other hosts by what they say of themselves, and what stands against dealing with one: said before it is asked."""

from typing import Protocol

from agent.base.errors import Refused
from agent.migration.host import Host
from protocol.errors import ErrorCode
from protocol.status import HostStatus


class Hosts(Protocol):
    """What is known of the other hosts, from their retained status."""

    def status(self, host: str) -> HostStatus | None: ...


def peer(host: Host, hosts: Hosts, name: str) -> HostStatus:
    """What is known of a host that is to be given a container.

    Raises:
        Refused: it may not be given any, is unknown, or away.

    """
    if name not in host.settings.peer.allow:
        raise Refused(
            ErrorCode.PEER_NOT_ALLOWED,
            f"{host.name} is not configured to give containers to {name}",
            hint="add it to peer.allow in agent.toml on both hosts",
        )
    status = hosts.status(name)
    if status is None:
        raise Refused(ErrorCode.NO_SUCH_HOST, f"no host named {name} is known", hint="`transship hosts` lists them")
    if not status.online:
        raise Refused(ErrorCode.HOST_OFFLINE, f"{name} is offline", hint="is its agent running?")
    return status
