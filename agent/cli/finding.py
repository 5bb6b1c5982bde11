"""Which container is meant, and where it runs. Pure: works on what the hosts have said."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from agent.base.errors import Refused
from protocol.errors import ErrorCode
from protocol.status import ContainerStatus, HostStatus


def find(reference: str, containers: Sequence[ContainerStatus], hosts: Mapping[str, HostStatus]) -> ContainerStatus:
    """The one container of that name, or whose id begins so; a name goes before an id, as in Docker.

    Raises:
        Refused: there is none, or more than one, or its host is offline; the hint says what there is.

    """
    named = [one for one in containers if one.name == reference]
    found = named or [one for one in containers if one.id.startswith(reference)]
    if not found:
        raise Refused(
            ErrorCode.NO_SUCH_CONTAINER,
            f"no host has a container {reference}",
            hint=_nearest(reference, containers) + _unseen(hosts),
        )
    if len(found) > 1:
        raise Refused(
            ErrorCode.NO_SUCH_CONTAINER,
            f"{reference} is not clear: {len(found)} containers are meant by it",
            hint=f"{_places(found)}: say which with --from HOST, or by a longer id",
        )
    [one] = found
    host = hosts.get(one.host)
    if host is not None and not host.online:
        raise Refused(
            ErrorCode.HOST_OFFLINE,
            f"{one.host}, which has {one.name}, is offline",
            hint="the agent there must run for anything to be moved away",
        )
    return one


def _places(found: Iterable[ContainerStatus]) -> str:
    return "; ".join(f"{one.name} ({one.id[:12]}, {one.state}) on {one.host}" for one in found)


def _nearest(reference: str, containers: Sequence[ContainerStatus]) -> str:
    by_name = {one.name: one for one in containers}
    near = difflib.get_close_matches(reference, by_name, n=3)
    if near:
        return "did you mean " + " or ".join(f"{name} on {by_name[name].host}" for name in near) + "?"
    return "`transship ps` shows what there is" if containers else "no host has any container"


def _unseen(hosts: Mapping[str, HostStatus]) -> str:
    offline = sorted(name for name, one in hosts.items() if not one.online)
    return f" ({', '.join(offline)} offline)" if offline else ""
