"""CRIU straight on a container's process tree, without runc and without Docker's API: the commands, and why each.

Nothing is run here. A dump and a restore are lists of commands that a person could type; whoever runs them may print
them first, and pasted into a shell they do the same. What the restore has to know is in `external.json`, beside the
images: Docker forgets it when the container has ended.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.base.errors import Refused
from protocol.errors import ErrorCode
from protocol.reading import explain

FOLDER = Path("/var/lib/transship/external")
RECORD = "external.json"
INNER = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2")
"""File systems that CRIU makes anew; everything else below the root comes from the host."""
NETNS = "transship-"


@dataclass(frozen=True, slots=True)
class Step:
    """One command, as it is run and as it would be typed."""

    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the container was attached: enough to attach the restored tree there again."""

    bridge: str
    addresses: tuple[str, ...]
    mac: str
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A container's process tree, as the host sees it."""

    container: str
    id: str
    pid: int
    root: tuple[str, ...]
    """The words of `mount` that set its root file system up again, without the place."""
    externals: Mapping[str, str]
    """Mount points in it that come from the host, and what is mounted there."""
    pipes: Mapping[int, str]
    """Its standard output and error where those are pipes to Docker: `pipe:[INODE]`."""
    networks: tuple[Address, ...] = ()
    netns: str = ""
    """`net[INODE]`."""
    restart: str = "no"

    @property
    def folder(self) -> Path:
        return FOLDER / self.id[:12]


TREE = TypeAdapter(Tree)


def mounts_of(mountinfo: str, sources: Mapping[str, str], here: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """How the root is mounted, and what comes from the host; `sources` by mount point, as Docker has them.

    `here` is the host's own mountinfo: what is mounted in the container is said there by its place on the file system,
    which the host may have mounted anywhere.

    Raises:
        Refused: the root file system is of a kind that can't be set up again.

    """
    root: tuple[str, ...] = ()
    externals: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        number, inside, point = left.split()[2:5]
        kind, device, options = right.split(" ", 2)
        if point == "/":
            root = root_mount(kind, device, inside, options, host_path(number, inside, here))
        elif kind == "cgroup":
            externals[point] = f"/sys/fs/cgroup/{Path(point).name}{inside}"
        elif kind not in INNER or point in sources:
            externals[point] = sources.get(point) or host_path(number, inside, here) or inside
    if not root:
        raise Refused(ErrorCode.NOT_MIGRATABLE, "its root file system can't be found")
    return root, externals


def host_path(device: str, inside: str, here: str) -> str:
    """Where the host sees a place of a file system; empty if it has not mounted that part of it."""
    found: list[tuple[int, str]] = []
    for line in here.splitlines():
        number, root, point = line.partition(" - ")[0].split()[2:5]
        below = "/" if root == "/" else root + "/"
        if number == device and (inside + "/").startswith(below):
            found.append((len(root), str(Path(point) / inside.removeprefix(root).lstrip("/"))))
    return max(found, default=(0, ""))[1]


def root_mount(kind: str, device: str, inside: str, options: str, seen: str) -> tuple[str, ...]:
    """As the storage driver would mount it: overlay2 and containerd's snapshots, vfs and btrfs."""
    if kind == "overlay":
        wanted = ("lowerdir=", "upperdir=", "workdir=", "userxattr", "index=", "metacopy=", "redirect_dir=")
        return ("-t", "overlay", "-o", ",".join(o for o in options.split(",") if o.startswith(wanted)), "overlay")
    if kind == "btrfs":
        return ("-t", "btrfs", "-o", f"subvol={inside}", device)
    if inside != "/" and seen:  # vfs: a folder of the host's file system
        return ("--bind", seen)
    raise Refused(
        ErrorCode.NOT_MIGRATABLE,
        f"its root file system is of the kind {kind}",
        hint="overlay2, the containerd image store, vfs and btrfs can be set up again",
    )


def dump_steps(tree: Tree, *, leave_running: bool) -> Iterator[Step]:
    """Dump the tree; it ends with that, unless it is to go on."""
    folder = tree.folder
    yield Step(("mkdir", "-p", "-m", "0700", str(FOLDER), str(folder), f"{folder}/images", f"{folder}/work"))
    yield Step(("sh", "-c", 'umask 077; cat >"$0"', f"{folder}/{RECORD}"), to_record(tree))
    if not leave_running and tree.restart != "no":
        # dockerd sees the tree die and would start the container anew
        yield Step(("docker", "update", "--restart=no", tree.container))
    yield Step(
        (
            *("criu", "dump", "--tree", str(tree.pid)),
            *("--images-dir", f"{folder}/images", "--work-dir", f"{folder}/work", "--log-file", "dump.log", "-v4"),
            *(("--leave-running",) if leave_running else ()),
            *COMMON,
            *("--external", f"{tree.netns}:network"),
            *(word for point in tree.externals for word in ("--external", f"mnt[{point}]:{point}")),
        )
    )


COMMON = (
    *("--file-locks", "--link-remap", "--tcp-established", "--ghost-limit", "536870912"),
    # the container's /dev/null is not the host's, though both are 1:3
    "--evasive-devices",
    "--manage-cgroups=soft",
    *("--network-lock", "nftables"),
)


def restore_steps(tree: Tree) -> Iterator[Step]:
    """Set the file system and the network up again, restore, and take down what the tree then holds itself."""
    folder = tree.folder
    root, name = f"{folder}/root", NETNS + tree.id[:8]
    yield Step(("mkdir", "-p", root))
    yield Step(("mount", *tree.root, root))
    yield Step(("ip", "netns", "add", name))
    yield Step(("ip", "-n", name, "link", "set", "lo", "up"))
    for number, network in enumerate(tree.networks):
        yield from _attach(network, name, f"eth{number}", f"ts{tree.id[:8]}{number}")
    inherited = [f"fd[{number + 3}]:{pipe}" for number, pipe in enumerate(tree.pipes.values())]
    redirects = [
        f"{number + 3}>>{folder}/{'stdout' if stream == 1 else 'stderr'}" for number, stream in enumerate(tree.pipes)
    ]
    criu = (
        *("criu", "restore", "--images-dir", f"{folder}/images", "--work-dir", f"{folder}/work"),
        *("--log-file", "restore.log", "-v4", "--restore-detached", "--pidfile", f"{folder}/work/pid"),
        *("--root", root),
        *COMMON,
        *("--inherit-fd", "fd[9]:network"),
        *(word for each in inherited for word in ("--inherit-fd", each)),
        *(word for point, source in tree.externals.items() for word in ("--external", f"mnt[{point}]:{source}")),
    )
    yield Step(("rm", "-f", f"{folder}/work/pid"))
    redirect = " ".join([*redirects, f"9</run/netns/{name}"])
    yield Step(("sh", "-c", f'exec "$0" "$@" {redirect}', *criu))
    yield from take_down_steps(tree)


def take_down_steps(tree: Tree) -> Iterator[Step]:
    """The mount and the name are only needed until the tree has its own."""
    yield Step(("umount", "--lazy", f"{tree.folder}/root"))
    yield Step(("ip", "netns", "delete", NETNS + tree.id[:8]))


def _attach(network: Address, name: str, inner: str, outer: str) -> Iterator[Step]:
    yield Step(("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name))
    yield Step(("ip", "link", "set", outer, "master", network.bridge, "up"))
    yield Step(("ip", "-n", name, "link", "set", inner, "address", network.mac, "up"))
    for address in network.addresses:
        quick = ("nodad",) if ":" in address else ()
        yield Step(("ip", "-n", name, "address", "add", address, "dev", inner, *quick))
    for gateway in network.gateways:
        yield Step(("ip", "-n", name, "route", "replace", "default", "via", gateway, "dev", inner))


def to_record(tree: Tree) -> str:
    """The tree as JSON, one line a field, for a person too."""
    return TREE.dump_json(tree, indent=1).decode()


def from_record(text: str) -> Tree:
    """A tree that was dumped.

    Raises:
        Refused: the record is not one.

    """
    try:
        return TREE.validate_json(text)
    except ValidationError as error:
        raise Refused(ErrorCode.BAD_COMMAND, f"{RECORD} is not understood: {'; '.join(explain(error))}") from None
