"""What a way to move a container has to offer, and what is moved."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from lab.macvlan import Place
from lab.node import Node

NAME = "bench"
PLACE = Place(200)
TICKER_PORT, REDIS_PORT = 7001, 6379
MOVE_SECONDS = 400.0
FOLDER = "/run/bench"
"""A tmpfs on every machine."""
_INSIDE = (Path(__file__).parents[1] / "inside.py").read_text()
_REDIS = "redis-server --save '' --appendonly no --protected-mode no --bind 0.0.0.0 >/dev/null"


class Unable(Exception):
    """This system can't do it at all here; the reason. It is left out, not measured as a failure."""


@dataclass(frozen=True, slots=True)
class Load:
    """What runs in the container."""

    size_mib: int
    redis: bool = False

    @property
    def image(self) -> str:
        return "zoo" if self.redis else "py"

    @property
    def command(self) -> list[str]:
        # Beside redis the ticker has little memory of its own: redis is what weighs.
        mib = 1 if self.redis else self.size_mib
        ticker = ["python3", "-c", _INSIDE, str(mib), str(TICKER_PORT)]
        return ["sh", "-c", f'{_REDIS} & exec "$@"', "sh", *ticker] if self.redis else ticker


class System(ABC):
    """One way, between one pair of machines, always from source to target.

    For each measurement: `start`, `prepare`, `move`, `clean`. Only `move` is measured.
    """

    name: str
    engine: str
    variant: str = ""
    source: Node
    target: Node

    @abstractmethod
    def equip(self, image: str) -> None:
        """Have the image, and all else that a start needs, on both machines."""

    @abstractmethod
    def start(self, load: Load) -> None:
        """Start the container on the source."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what an operator would have done long before the move."""

    @abstractmethod
    def move(self) -> float:
        """Move the container; seconds from the word until nothing is left to do."""

    @abstractmethod
    def peak_rss_mib(self) -> float:
        """Of the largest process that has moved it."""

    @abstractmethod
    def clean(self) -> None:
        """Remove the container everywhere; safe whatever has happened."""

    def agent_seconds(self) -> float | None:
        """Processor seconds of the agents so far, if there are any."""
        return None

    def report(self) -> dict[str, float]:
        """Say what the system itself has measured."""
        return {}
