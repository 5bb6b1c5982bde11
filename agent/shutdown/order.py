"""In which order containers are started at boot: each after those that it depends on, as Compose says. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

PROJECT: Final = "com.docker.compose.project"
SERVICE: Final = "com.docker.compose.service"
DEPENDS: Final = "com.docker.compose.depends_on"
HEALTHY: Final = "service_healthy"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A container that is to be started."""

    id: str
    name: str
    labels: Mapping[str, str]

    @property
    def service(self) -> tuple[str, str]:
        return self.labels.get(PROJECT, ""), self.labels.get(SERVICE, "")

    def depends_on(self) -> Iterator[tuple[tuple[str, str], bool]]:
        """Services of its project, and whether they have to be healthy; `db:service_healthy:true,cache`."""
        for text in filter(None, (part.strip() for part in self.labels.get(DEPENDS, "").split(","))):
            name, _, rest = text.partition(":")
            yield (self.service[0], name), rest.partition(":")[0] == HEALTHY


def rounds(waiting: Iterable[Waiting]) -> list[list[Waiting]]:
    """Those of a round may be started at once, when those before are up; a circle is broken: somebody must begin."""
    left = sorted(waiting, key=lambda one: one.name)
    found = []
    while left:
        there = {one.service for one in left if one.service[1]}
        now = [one for one in left if not any(on in there - {one.service} for on, _ in one.depends_on())] or left[:1]
        found.append(now)
        left = [one for one in left if one not in now]
    return found


def to_be_healthy(waiting: Iterable[Waiting]) -> set[tuple[str, str]]:
    """Services that somebody waits for to be healthy."""
    return {on for one in waiting for on, healthy in one.depends_on() if healthy}
