"""Whether a host could take a container, as far as what it says of itself tells: every reason against it. Pure.

The host itself has the last word: its admission, when the container is offered to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from agent.migration.admission import criu_is_usable
from protocol.errors import ErrorCode, Reason
from protocol.status import Engine, HostStatus

OVERLAYS: Final = ("overlay2", "overlayfs")
"""A writable layer is unpacked into these; which of the two, and whose image store, does not matter."""
USUAL_RATE: Final = 100e6
"""Bytes a second, of a link that nobody has measured yet."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A container that is to go, and what it needs where it goes."""

    id: str
    name: str
    memory_bytes: int = 0
    room_bytes: int = 0
    """For its images, beside the memory itself, while it is being moved."""
    files_bytes: int = 0
    cpus: float = 0
    """As --cpus says; 0: whatever there is."""
    confined: bool = False
    """By an AppArmor profile, which the target has to have too."""
    priority: int = 0
    goes: bool = True
    """False: its label says that it stays."""
    targets: tuple[str, ...] = ()
    """The only hosts that it may go to, the dearest first; none: any."""
    against: tuple[Reason, ...] = ()
    """Why it can't be moved at all."""
    refused: tuple[tuple[str, Reason], ...] = ()
    """Host, and what that has said already when it was asked."""
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return self.memory_bytes + self.files_bytes

    def refused_by(self, host: str, reason: Reason) -> "Leaving":
        return replace(self, refused=(*self.refused, (host, reason)))


@dataclass(frozen=True, slots=True)
class Place:
    """A host that might take some."""

    status: HostStatus
    allowed: bool = True
    """Whether this host is configured to give it containers."""
    rate: float = 0
    """Bytes a second over the link to it, measured; 0: not known."""
    unreachable: str = ""
    """Why its agent could not be asked, if it was tried."""
    promised_bytes: int = 0
    """To containers that are on their way there, and not in what it says to be free."""
    underway: int = 0
    """Of ours, on their way there."""

    @property
    def name(self) -> str:
        return self.status.host

    @property
    def free_bytes(self) -> int:
        """What may be planned for."""
        return self.status.memory_free_bytes - self.status.memory_reserve_bytes - self.promised_bytes

    @property
    def bytes_a_second(self) -> float:
        return self.rate or USUAL_RATE

    @property
    def at_once(self) -> int:
        return max(1, self.status.migrations_limit)


@dataclass(frozen=True, slots=True)
class Origin:
    """The host that is to be empty."""

    name: str
    engine: Engine
    machine: str
    others: tuple[Place, ...] = field(default=())


def against(origin: Origin, one: Leaving, place: Place, only: tuple[str, ...]) -> tuple[Reason, ...]:
    """Everything against this place for this container but for the room, which depends on the others."""
    reasons = [*_wishes(one, place, only), *(reason for host, reason in one.refused if host == place.name)]
    standing = tuple(_standing(place))
    if standing:
        return (*reasons, *standing)  # what it has is not known, or does not matter
    return (*reasons, *_fit(origin, one, place))


def _wishes(one: Leaving, place: Place, only: tuple[str, ...]) -> Iterator[Reason]:
    if only and place.name not in only:
        yield Reason(code=ErrorCode.NO_TARGET, message=f"it is not among the hosts asked for ({', '.join(only)})")
    if one.targets and place.name not in one.targets:
        wished = ", ".join(one.targets)
        yield Reason(code=ErrorCode.NO_TARGET, message=f"the label transship.targets names only {wished}")


def _standing(place: Place) -> Iterator[Reason]:
    """Why nothing at all may go there."""
    status = place.status
    if not place.allowed:
        yield Reason(
            code=ErrorCode.PEER_NOT_ALLOWED,
            message="no containers may be given to it",
            hint="add it to peer.allow in agent.toml on both hosts",
        )
    if not status.online:
        yield Reason(code=ErrorCode.HOST_OFFLINE, message="it is offline", hint="is its agent running?")
    elif status.cordoned:
        hint = f"`transship uncordon {place.name}`, if it is to take containers again"
        yield Reason(code=ErrorCode.HOST_CORDONED, message="it is cordoned", hint=hint)
    elif place.unreachable:
        yield Reason(code=ErrorCode.PEER_UNREACHABLE, message=place.unreachable)
    elif status.engine is None or not status.engine.docker:
        yield Reason(code=ErrorCode.DOCKER_UNAVAILABLE, message="its dockerd does not answer")


def _fit(origin: Origin, one: Leaving, place: Place) -> Iterator[Reason]:
    here, there = origin.engine, place.status.engine
    assert there is not None
    if not criu_is_usable(there.criu):
        message = f"its CRIU {there.criu} is too old" if there.criu else "it has no CRIU"
        yield Reason(code=ErrorCode.CRIU_UNUSABLE, message=message, hint="install CRIU 4.2 or newer there")
    elif _number(there.criu) < _number(here.criu):
        message = f"its CRIU {there.criu} is older than {here.criu} here"
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=message, hint="install the same CRIU on both hosts")
    if not there.runtime_registered:
        message, hint = "its dockerd does not know the runtime transship", "run `transship setup` there"
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=message, hint=hint)
    for differs in _differences(origin, place.status, there):
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=differs)
    if one.confined and not there.apparmor:
        message = "it has no AppArmor, which confines the container here"
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=message)
    if one.cpus > place.status.cpus:
        message = f"it has {place.status.cpus} cores, fewer than --cpus asks for ({one.cpus:g})"
        yield Reason(code=ErrorCode.INCOMPATIBLE, message=message)


def _differences(origin: Origin, status: HostStatus, there: Engine) -> Iterator[str]:
    here = origin.engine
    if status.machine != origin.machine:
        yield f"it is {status.machine}, this host {origin.machine}"
    if there.cgroup_version != here.cgroup_version:
        yield f"it has cgroup v{there.cgroup_version}, this host v{here.cgroup_version}"
    if there.userns_remap != here.userns_remap:
        yield f"it {'uses' if there.userns_remap else 'does not use'} userns-remap, other than this host"
    if there.storage_driver and there.storage_driver not in OVERLAYS:
        yield f"its storage driver {there.storage_driver} is no overlay"


def _number(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return ()
