"""A cgroup of its own for each machine of the lab, whichever version the outer machine mounts.

Version 1: one folder in every hierarchy, below the cgroup that this process is in. Version 2: one folder below
the root, and processes in a leaf of it, because no cgroup may both hold processes and hand controllers on. What was
made is recorded in a file, since the process that removes it may be in another cgroup than the one that made it.

Where the outer machine has both, a machine of either version has its folders in the other one as well. Without them its
containers would be in the root there: CRIU takes the whole tree below into its images, and makes it again, with the
frozen ones as frozen, at the restore: cgroups of other labs' containers came back after they were gone.
"""

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lab import shell
from lab.naming import CGROUP
from lab.shell import LabError

_LEAF = "processes"
_LOOKS = 20
# Moves itself into each folder up to `--`, then becomes the command after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'


def make(lab: str, machine: str, record: Path, *, version2: bool) -> str:
    """Make the machine's folders and note them, the note first; returns what the machine has to mount.

    That is `unified` for version 2, taken if wanted or if there is nothing else, or the names of the hierarchies.
    """
    hierarchies, unified = _mounted()
    if version2 and unified is None:
        raise LabError("this machine has no cgroup version 2 mounted")
    use_unified = unified is not None and (version2 or not hierarchies)
    bases = list(hierarchies.values())  # a machine mounts one version, but its processes are in the other one too
    if unified is not None:
        bases.append(unified)
    folders = [base / CGROUP / lab / machine for base in bases]
    record.write_text("".join(f"{folder}\n" for folder in folders))
    for base in bases:
        folder = base
        for name in (CGROUP, lab, machine):
            _hand_controllers_on(folder)
            folder = folder / name
            folder.mkdir(exist_ok=True)
            _copy_cpuset(folder)
    return "unified" if use_unified else " ".join(hierarchies)


def join(record: Path, argv: Sequence[str]) -> list[str]:
    """Build the command line that moves into the machine's folders and then becomes the given command."""
    leaves = [folder / _LEAF if (folder / _LEAF).exists() else folder for folder in _read(record)]
    return ["sh", "-c", _JOIN, "join", *map(str, leaves), "--", *argv]


def settle(record: Path) -> None:
    """Let a machine that has just booted make cgroups of its own: version 2 wants its processes out of the way.

    They can't begin in the leaf: the machine takes for its root what its first process is in when it starts.
    """
    for folder in _read(record):
        if not (folder / "cgroup.controllers").exists():
            continue
        (folder / _LEAF).mkdir(exist_ok=True)
        for _ in range(_LOOKS):  # one that was begun just now is still where its parent was
            for process in (left := (folder / "cgroup.procs").read_text().split()):
                _write(folder / _LEAF / "cgroup.procs", process)
            if not left:
                break
        _hand_controllers_on(folder)


def thaw(record: Path) -> None:
    """Thaw everything frozen below the machine's folders: a frozen task of version 1 does not even die."""
    for folder in _read(record):
        for state in folder.glob("**/freezer.state"):
            _write(state, "THAWED")


def remove(record: Path) -> None:
    """Remove the machine's folders; safe when they are gone. Its processes must have ended."""
    for folder in _read(record):
        # A dead process leaves its cgroup a moment after its parent has been told.
        shell.wait_until(f"{folder} is empty", partial(_remove_tree, folder), timeout=10)
        for parent in (folder.parent, folder.parent.parent):
            try:
                parent.rmdir()
            except OSError:
                break  # another machine or lab is still there
    record.unlink(missing_ok=True)


def _read(record: Path) -> list[Path]:
    return [Path(line) for line in record.read_text().splitlines()] if record.exists() else []


def _remove_tree(folder: Path) -> bool:
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            Path(path).rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True


def _mounted() -> tuple[dict[str, Path], Path | None]:
    """Find this process's folder in each version 1 hierarchy, by the hierarchy's name, and the root of version 2."""
    mounts: list[tuple[set[str], Path]] = []
    unified = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")
        mount = Path(left.split(" ")[4])
        if kind == "cgroup":
            mounts.append((set(options.split(",")), mount))
        elif kind == "cgroup2":
            unified = unified or mount
    folders = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        for mounted, mount in mounts:
            if name and set(name.split(",")) <= mounted:
                folders[name] = mount / path.lstrip("/")
                break
    return folders, unified


def _hand_controllers_on(folder: Path) -> None:
    control = folder / "cgroup.subtree_control"
    if control.exists():
        for controller in (folder / "cgroup.controllers").read_text().split():
            _write(control, f"+{controller}")


def _copy_cpuset(folder: Path) -> None:
    """Give a version 1 cpuset what its parent has: it starts empty, and no process may enter an empty one."""
    if (folder / "cgroup.controllers").exists():
        return  # in version 2 empty means what the parent has, and the root has no such file
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if file.exists() and not file.read_text().strip():
            _write(file, (folder.parent / name).read_text())


def _write(file: Path, text: str) -> None:
    # Gone meanwhile, or not for us to set: the command that needs it will say so.
    with contextlib.suppress(OSError):
        file.write_text(text)
