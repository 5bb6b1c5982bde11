"""Docker's events as dataclasses, and what their words mean. Order and quirks: docs of `docker system events`.

An event is a hint that something may have changed, never the new state itself: events are lost when the reader is
slow, repeated after a reconnect, and `die` and `stop` come in either order.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DockerEvent:
    kind: str
    """container, network, volume, image, daemon, ..."""
    action: str
    """One word: start, die, health_status, exec_start, ...; what Docker put behind the colon is `detail`."""
    detail: str
    """The new health of a health_status, the command of an exec_create or exec_start."""
    id: str
    name: str
    attributes: Mapping[str, str]
    """Every label of the container among them."""
    time_nano: int

    @property
    def container_id(self) -> str:
        """The container that it is about, also where it happened to a network or volume; empty if there is none."""
        if self.kind == "container":
            return self.id
        return self.attributes.get("container", "") if self.kind in ("network", "volume") else ""


def parse(line: bytes) -> DockerEvent:
    """One line of the stream.

    Raises:
        ValueError: it is no event.

    """
    try:
        raw: Mapping[str, Any] = json.loads(line)
        actor = raw["Actor"]
        action, _, detail = raw["Action"].partition(":")
        attributes = actor.get("Attributes") or {}
        return DockerEvent(
            kind=raw["Type"],
            action=action,
            detail=detail.strip(),
            id=actor["ID"],
            name=attributes.get("name", ""),
            attributes=attributes,
            time_nano=int(raw["timeNano"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of Docker: {error}") from error


def since(time_nano: int) -> str:
    """The moment as Docker's `since` takes it; a float would lose the last two digits."""
    return f"{time_nano // 10**9}.{time_nano % 10**9:09d}"


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream at its newlines; a line may be of any length, as labels may."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest
