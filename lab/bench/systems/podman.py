"""Podman: `container checkpoint --export`, the file copied, `container restore --import`; packed with zstd or not."""

import time

from lab import images, macvlan
from lab.bench.processes import Carrier, Primed
from lab.bench.systems.base import FOLDER, MOVE_SECONDS, NAME, PLACE, Load, System
from lab.node import Node

_FILE = f"{FOLDER}/checkpoint.tar"


class PodmanSystem(System):
    """See the module."""

    name = "podman"

    def __init__(self, version: str, compress: str, source: Node, target: Node) -> None:
        self.engine, self.variant = f"podman{version}", compress
        self.source, self.target = source, target
        self._carrier: Carrier | None = None
        self._commands: list[Primed] = []

    def equip(self, image: str) -> None:
        for node in (self.source, self.target):
            node.run(["mkdir", "-p", FOLDER])
            if node.run(["podman", "network", "exists", macvlan.NETWORK], check=False).returncode:
                node.run(["podman", "network", "create", *macvlan.OPTIONS_V4, macvlan.NETWORK])
            if node.run(["podman", "image", "exists", image], check=False).returncode:
                with images.ensure(image).open("rb") as archive:
                    node.run(["podman", "load", "--quiet"], stdin=archive, timeout=300)

    def start(self, load: Load) -> None:
        place = ["--network", macvlan.NETWORK, "--ip", PLACE.v4, "--mac-address", PLACE.mac]
        self.source.run(["podman", "run", "-d", "--name", NAME, *place, load.image, *load.command])

    def prepare(self) -> None:
        self._carrier = Carrier(self.source, self.target)
        podman = ["podman", "container"]
        checkpoint = [*podman, "checkpoint", "--tcp-established", "--compress", self.variant, "--export", _FILE, NAME]
        restore = [*podman, "restore", "--tcp-established", "--import", _FILE]
        self._commands = [Primed(self.source, *checkpoint), Primed(self.target, *restore)]

    def move(self) -> float:
        assert self._carrier is not None
        checkpoint, restore = self._commands
        began = time.monotonic()
        checkpoint.run(MOVE_SECONDS)
        self._carrier.carry([(_FILE, _FILE)], MOVE_SECONDS)
        # Its room is needed: image files, tar file and memory of the largest containers don't fit side by side.
        self.source.run(["rm", "-f", _FILE])
        restore.run(MOVE_SECONDS)
        return time.monotonic() - began

    def peak_rss_mib(self) -> float:
        return max(command.peak_rss_mib for command in self._commands)

    def clean(self) -> None:
        for command in self._commands:
            command.close()
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
        for node in (self.source, self.target):
            node.run(["podman", "rm", "--force", "--time", "0", "--volumes", NAME], check=False)
            node.run(["rm", "-f", _FILE], check=False)


def version(node: Node) -> str:
    """Podman's own version, without its last part."""
    return node.run(["podman", "version", "--format", "{{.Client.Version}}"]).stdout.strip().rpartition(".")[0]
