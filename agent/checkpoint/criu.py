"""What to call runc and CRIU with. Builds words and files; runs nothing.

Options go to CRIU in a file named by the annotation `org.criu.config`, since runc has flags for a few of them only. On
the target the runtime puts the annotation into the bundle. On the source the container is running and its bundle is
dockerd's: there a *shadow root* - a copy of runc's state with the annotation added - is given to `runc --root`, so that
nothing global (/etc/criu/runc.conf) has to be changed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.base.errors import CorruptPart, DumpFailed
from agent.base.protobuf import fields
from agent.runtime import pages
from protocol.commands import TcpPolicy

COMMON_MAGIC, SERVICE_MAGIC = 0x54564319, 0x55105940
TASK, STATE = 3, 1
"""Of a core image: images/core.proto."""
DEAD = (2, 6)
"""criu/include/pid.h: TASK_DEAD, TASK_ZOMBIE."""
FROZEN_TIME = 2
"""Of CRIU's statistics, microseconds: images/stats.proto."""
ROUND, PARENT = "round-", "parent"
"""Folders of rounds among the images; CRIU's own name of the link to the images before."""
RUNC_ROOTS = "/run/docker"
DUMP_SECONDS = 60
"""CRIU's own deadline for collecting the tasks; they are frozen by then, so it is never near."""
PAGE_SERVER_SOCKET = f"ps-socket {pages.PAGES_FD}\n"
"""In the options of a dump that serves its memory itself: over this descriptor, instead of a port that it opens."""
GHOST_LIMIT = 512 << 20
"""Bytes of an unlinked open file that go into the images; CRIU's own limit of 1 MiB refuses too many programs."""


@dataclass(frozen=True, slots=True)
class CriuOptions:
    """One dump or restore, in CRIU's words."""

    tcp: TcpPolicy
    ghost_limit: int = GHOST_LIMIT
    watched: tuple[str, ...] = ()
    """Paths under an inotify watch: on overlayfs CRIU can't find them by their file handle."""

    def _both(self) -> list[str]:
        lines = [
            "network-lock skip",  # ours is there already, and stays after the dump (agent/network/lock.py)
            "file-locks",
            "link-remap",
            f"ghost-limit {self.ghost_limit}",
        ]
        if self.tcp is TcpPolicy.KEEP:
            lines.append("tcp-established")
        elif self.tcp is TcpPolicy.CLOSE:
            lines += ["tcp-close", "skip-in-flight"]
        return lines

    def for_dump(self) -> str:
        watches = [f"irmap-scan-path {path}" for path in self.watched]
        return "\n".join([*self._both(), f"timeout {DUMP_SECONDS}", *watches]) + "\n"

    def for_restore(self, hold: Path) -> str:
        # `hold` keeps CRIU from letting the tasks go when all is restored. Not `leave-stopped`: its SIGSTOP and the
        # SIGCONT that ends it are seen by parents, and stay pending where they are blocked (decision 0002)
        return "\n".join([*self._both(), f"action-script {hold}"]) + "\n"


def dump_command(shadow_root: Path, images: Path, work: Path, container_id: str, parent: str = "") -> tuple[str, ...]:
    """`runc checkpoint` that leaves the tasks as they are: frozen, not dead.

    With a `parent`, a path from `images`, only the memory that was written since that dump.
    """
    return (
        *("runc", "--root", str(shadow_root), "checkpoint", "--leave-running"),
        *(("--parent-path", parent) if parent else ()),
        *("--image-path", str(images), "--work-path", str(work), container_id),
    )


def with_path(path: str, command: tuple[str, ...]) -> tuple[str, ...]:
    """The same, with the programs that CRIU calls found elsewhere first."""
    return ("env", f"PATH={path}", *command)


def pre_dump_command(shadow_root: Path, images: Path, work: Path, container_id: str, parent: str) -> tuple[str, ...]:
    """A dump of the memory alone, of tasks that run: CRIU holds them for a moment, and writes when they run again."""
    command = dump_command(shadow_root, images, work, container_id, parent)
    return (*command[:-1], "--pre-dump", command[-1])


def dedup_command(images: Path) -> tuple[str, ...]:
    """Take out of the images before these what these have newer."""
    return ("criu", "dedup", "--images-dir", str(images), "--work-dir", str(images), "--log-file", "dedup.log")


def round_name(number: int) -> str:
    """The folder of a round of pre-copy among the images, on both sides."""
    return f"{ROUND}{number}"


def lazy_dump_command(
    shadow_root: Path, images: Path, work: Path, container_id: str, parent: str = ""
) -> tuple[str, ...]:
    """The same, but that CRIU keeps the tasks' memory and serves it, over the page channel's socket, until it is asked
    for no more or is hung up on. Needs `PAGE_SERVER_SOCKET` among its options.
    """
    command = dump_command(shadow_root, images, work, container_id, parent)
    # runc wants an address; CRIU uses the socket that it is given instead
    lazy = ("--lazy-pages", "--page-server", "127.0.0.1:1", "--status-fd", str(pages.READY_FD))
    return (*command[:-1], *lazy, command[-1])


def lazy_pages_command(images: Path, work: Path) -> tuple[str, ...]:
    """CRIU's daemon that answers the page faults of a restored container, over the page channel's socket."""
    return (
        *("criu", "lazy-pages", "--images-dir", str(images), "--work-dir", str(work), "--log-file", "lazy-pages.log"),
        *("-v2", "--page-server", "--ps-socket", str(pages.PAGES_FD), "--status-fd", str(pages.READY_FD)),
    )


def tasks_in(images: Path) -> int:
    """How many tasks a dump has that live, by its own list of them.

    The dead ones, whose parents have not asked for them yet, are in the list too; the kernel keeps them in no cgroup.

    Raises:
        CorruptPart: it is none.

    """
    try:
        pids = [int(fields(entry)[1]) for entry in _entries(images / "pstree.img")]
        return sum(_lives(images / f"core-{pid}.img") for pid in pids)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CorruptPart(f"CRIU's list of tasks is not understood: {error}") from None


def held_ms(work: Path) -> float:
    """For how long CRIU held the tasks of a dump that let them go again, by its own statistics; 0 without any."""
    try:
        (entry,) = _entries(work / "stats-dump")
        about = fields(entry)[1]
        return int(fields(about)[FROZEN_TIME]) / 1000 if isinstance(about, bytes) else 0.0
    except (ValueError, KeyError, FileNotFoundError):
        return 0.0


def _lives(core: Path) -> bool:
    (entry,) = _entries(core)
    about = fields(entry)[TASK]
    return isinstance(about, bytes) and fields(about)[STATE] not in DEAD


def _entries(image: Path) -> Iterator[bytes]:
    """The entries of an image (images/image-desc.c: a magic or two, then sized entries)."""
    data = image.read_bytes()
    at = 8 if int.from_bytes(data[:4], "little") in (COMMON_MAGIC, SERVICE_MAGIC) else 4
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : end]
        at = end


def runc_state(container_id: str, roots: str = RUNC_ROOTS) -> Path:
    """The state file that runc has of a Docker container; its folder's name differs with userns-remap.

    Raises:
        DumpFailed: there is none: another runtime runs it, or dockerd has another --exec-root.

    """
    for path in Path(roots).glob(f"runtime-*/*/{container_id}/state.json"):
        return path
    raise DumpFailed(
        "runc does not know the container",
        hint="only containers run by runc (or by transship's runtime) can be checkpointed",
    )


def make_shadow_root(container_id: str, config: Path, root: Path, roots: str = RUNC_ROOTS) -> int:
    """Copy runc's state of the container to `root`, with CRIU's options named in it; the container's first process.

    Raises:
        DumpFailed: runc does not know the container.

    """
    state = json.loads(runc_state(container_id, roots).read_text())
    labels = [label for label in state["config"].get("labels") or [] if not label.startswith("org.criu.config=")]
    state["config"]["labels"] = [*labels, f"org.criu.config={config}"]
    folder = root / container_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "state.json").write_text(json.dumps(state))
    return int(state.get("init_process_pid", 0))
