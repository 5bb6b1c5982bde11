"""The limit of a move one step after the other: runc checkpoint into memory, a plain socket, runc restore.

Nothing but CRIU is at work: no engine, no image, no files but CRIU's, a network namespace made beforehand.
"""

import json

from lab.bench.systems.base import FOLDER, NAME, PLACE, Load
from lab.bench.systems.carried import CarriedSystem
from lab.host import Host
from lab.node import Node

_RUNC = ["runc", "--root", f"{FOLDER}/runc"]
_IMAGES, _BUNDLE = f"{FOLDER}/images", f"{FOLDER}/bundle"
_NAMESPACE = f"/run/netns/{NAME}"
# The link is raised last of all: what has an address twice must not answer for it twice.
_NETWORK = f"""
set -e
ip netns add {NAME}
nsenter --net={_NAMESPACE} sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ip link add link eth0 name bench0 address {PLACE.mac} netns {NAME} type macvlan mode bridge
ip -n {NAME} -batch - <<END
link set lo up
link set bench0 name eth0
address add {PLACE.v4}/24 dev eth0
END
"""
_UNPACK = """
set -e
[ ! -d "$2" ] || exit 0
mkdir -p "$2.new"
container=$(docker create "$1" true)
docker export "$container" | tar -x -C "$2.new"
docker rm "$container"
mv "$2.new" "$2"
"""
_RAISE = f"ip -n {NAME} link set eth0 up"
_REMOVE = f"""
{" ".join(_RUNC)} delete --force {NAME}
ip netns delete {NAME}
rm -rf {_IMAGES} {_BUNDLE}
true
"""


class BareSystem(CarriedSystem):
    """See the module."""

    name = "bare"

    def __init__(self, source: Host, target: Host) -> None:
        super().__init__(source.node, target.node)
        self._hosts = (source, target)
        self.engine = str(source.spec.engine)
        self._load = Load(0)

    def equip(self, image: str) -> None:
        for host in self._hosts:
            host.ensure_image(image)
            host.run(["sh", "-c", _UNPACK, "unpack", image, _root(image)], timeout=300)

    def start(self, load: Load) -> None:
        self._load = load
        self._make(self.source)
        run = [*_RUNC, "run", "--detach", "--bundle", _BUNDLE, NAME]
        # Its standard streams are not ours: it outlives this command.
        self.source.run(["sh", "-c", f'{_RAISE}; exec "$@" >/dev/null 2>&1 </dev/null', "run", *run])

    def prepare(self) -> None:
        self._make(self.target)
        work = ["--image-path", _IMAGES, "--work-path", FOLDER, "--tcp-established"]
        checkpoint = [*_RUNC, "checkpoint", *work, NAME]
        restore = ["sh", "-c", f'{_RAISE}; exec "$@" </dev/null', "restore"]
        restore += [*_RUNC, "restore", "--detach", *work, "--bundle", _BUNDLE, NAME]
        self.prime(checkpoint, restore)

    def paths(self) -> list[tuple[str, str]]:
        return [(_IMAGES, _IMAGES)]

    def clean(self) -> None:
        super().clean()
        for host in self._hosts:
            host.run(["sh", "-c", _REMOVE])

    def _make(self, node: Node) -> None:
        """Make the bundle and the network of the container."""
        node.run(["sh", "-c", f"mkdir -p {_BUNDLE}; runc spec --bundle {_BUNDLE}"])
        file = f"{_BUNDLE}/config.json"
        node.write(file, json.dumps(_configure(json.loads(node.read(file)), self._load)))
        node.run(["sh", "-c", _NETWORK])


def _root(image: str) -> str:
    return f"/var/lib/containers/bench-{image}"


def _configure(spec: dict[str, dict[str, object]], load: Load) -> dict[str, dict[str, object]]:
    spec["process"] |= {"terminal": False, "args": load.command, "rlimits": [], "noNewPrivileges": False}
    spec["root"] = {"path": _root(load.image), "readonly": False}
    kinds = ("pid", "ipc", "uts", "mount")
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in kinds]
    spec["linux"]["namespaces"] = [*namespaces, {"type": "network", "path": _NAMESPACE}]
    return spec
