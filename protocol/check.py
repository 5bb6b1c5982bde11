"""Whether a container could be moved, and where to: the answer to `check`, and the short one that is retained."""

from enum import StrEnum

from protocol.base import ContainerId, HostName, Timestamp, WireModel
from protocol.errors import Reason


class Verdict(StrEnum):
    """Could it be moved there?"""

    YES = "yes"
    COLD = "cold"  # but not by post-copy
    NO = "no"


class PeerCheck(WireModel):
    """One container and one host that it might be moved to."""

    host: HostName
    verdict: Verdict
    blackout_ms: dict[str, float] = {}
    """By strategy, as predicted; of those that can be had there."""
    reasons: tuple[Reason, ...] = ()
    """What that host has against it; with the verdict `cold`, what it has against post-copy."""
    notes: tuple[str, ...] = ()


class ContainerCheck(WireModel):
    """One container. What stands against it here stands against every host."""

    container: str
    container_id: ContainerId
    memory_bytes: int = 0
    reasons: tuple[Reason, ...] = ()
    peers: tuple[PeerCheck, ...] = ()
    notes: tuple[str, ...] = ()
    """What would not be exactly as before, each a sentence."""


class PeerOutlook(WireModel):
    """As `PeerCheck`, without words."""

    verdict: Verdict
    blackout_ms: dict[str, int] = {}
    reasons: tuple[str, ...] = ()
    """Codes: docs/reasons.md."""


class Outlook(WireModel):
    """Retained with a running container: whether it could be moved, as was found when something changed last."""

    found_at: Timestamp
    """A later look that found the same leaves it as it is."""
    reasons: tuple[str, ...] = ()
    """Codes of what stands against it on its own host."""
    peers: dict[HostName, PeerOutlook] = {}
