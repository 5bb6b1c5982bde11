"""What ways in three steps have in common: a command on the source, its files carried over, a command on the target."""

import time
from abc import abstractmethod
from collections.abc import Sequence

from lab.bench.processes import Carrier, Primed
from lab.bench.systems.base import MOVE_SECONDS, System
from lab.node import Node


class CarriedSystem(System):
    """A system whose `prepare` ends with `prime`."""

    def __init__(self, source: Node, target: Node) -> None:
        self.source, self.target = source, target
        self._carrier: Carrier | None = None
        self._commands: list[Primed] = []

    def prime(self, checkpoint: Sequence[str], restore: Sequence[str]) -> None:
        """Let both commands and the connection between them wait for their turn."""
        self._carrier = Carrier(self.source, self.target)
        for node, argv in ((self.source, checkpoint), (self.target, restore)):
            self._commands.append(Primed(node, *argv))

    @abstractmethod
    def paths(self) -> list[tuple[str, str]]:
        """What is to be carried: paths on the source, each with its path on the target."""

    def carried(self) -> None:
        """Do what has to be done between carrying and restoring; a part of the move."""
        return

    def move(self) -> float:
        assert self._carrier is not None
        checkpoint, restore = self._commands
        paths = self.paths()
        began = time.monotonic()
        checkpoint.run(MOVE_SECONDS)
        self._carrier.carry(paths, MOVE_SECONDS)
        self.carried()
        restore.run(MOVE_SECONDS)
        return time.monotonic() - began

    def peak_rss_mib(self) -> float:
        return max(command.peak_rss_mib for command in self._commands)

    def clean(self) -> None:
        for command in self._commands:
            command.close()
        self._commands = []
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
