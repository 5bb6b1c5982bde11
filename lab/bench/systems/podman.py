"""Podman: `container checkpoint --export`, the file copied, `container restore --import`; packed with zstd or not."""

from lab import images, macvlan
from lab.bench.systems.base import FOLDER, NAME, PLACE, Load
from lab.bench.systems.carried import CarriedSystem
from lab.node import Node

_FILE = f"{FOLDER}/checkpoint.tar"


class PodmanSystem(CarriedSystem):
    """See the module."""

    name = "podman"

    def __init__(self, version: str, compress: str, source: Node, target: Node) -> None:
        super().__init__(source, target)
        self.engine, self.variant = f"podman{version}", compress

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
        podman = ["podman", "container"]
        checkpoint = [*podman, "checkpoint", "--tcp-established", "--compress", self.variant, "--export", _FILE, NAME]
        restore = [*podman, "restore", "--tcp-established", "--import", _FILE]
        self.prime(checkpoint, restore)

    def paths(self) -> list[tuple[str, str]]:
        return [(_FILE, _FILE)]

    def carried(self) -> None:
        # Its room is needed: image files, tar file and memory of the largest containers don't fit side by side.
        self.source.run(["rm", "-f", _FILE])

    def clean(self) -> None:
        super().clean()
        for node in (self.source, self.target):
            node.run(["podman", "rm", "--force", "--time", "0", "--volumes", NAME], check=False)
            node.run(["rm", "-f", _FILE], check=False)


def version(node: Node) -> str:
    """Podman's own version, without its last part."""
    return node.run(["podman", "version", "--format", "{{.Client.Version}}"]).stdout.strip().rpartition(".")[0]
