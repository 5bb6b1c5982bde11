"""This checkout inside a machine of the VM lab: copied in, a command run in it, what it says passed on as it comes."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import roots
from lab.naming import state_folder
from lab.shell import PATIENCE
from lab.vm.machine import DISK_OF_FILES, Machine, Output, Spec, running

_MEMORY_MIB = 4096
PYTHON = "/opt/transship/bin/python"
"""In the machine: with the agent's dependencies and pytest."""
PLACE = "/root/transship"
SLOWER = 8
"""How many times more time everything is given inside."""


@contextmanager
def equipped(name: str, memory_mib: int = _MEMORY_MIB) -> Iterator[Machine]:
    """A machine with this checkout in PLACE; edits there stay there."""
    files = state_folder() / f"vm-{name}-{os.getpid()}.tar"
    files.parent.mkdir(parents=True, exist_ok=True)
    try:
        _pack(files)
        with running(Spec(name, memory_mib, files=files)) as machine:
            machine.run(["mkdir", "-p", PLACE])
            machine.run(["tar", "--extract", f"--directory={PLACE}", f"--file={DISK_OF_FILES}"], timeout=120)
            yield machine
    finally:
        files.unlink(missing_ok=True)


def run(argv: Sequence[str], timeout: float, output: Output, say: Output = lambda line: None) -> int:
    """Run a command in this checkout, in a machine of its own; its exit code."""
    with equipped("lab") as machine:
        kernel = machine.run(["uname", "--kernel-release"]).stdout.strip()
        say(f"kernel {kernel}, up after {machine.seconds_to_boot:.0f} s")
        # A script of the checkout finds its Python as everywhere else.
        path = f"{Path(PYTHON).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "TRANSSHIP_LAB_PATIENCE": str(PATIENCE * SLOWER)}
        return machine.run(argv, check=False, timeout=timeout, cwd=PLACE, env=env, output=output).returncode


def _pack(target: Path) -> None:
    """Write the checkout into a tar file, without what only this machine can use (.venv, .git, byte code)."""

    def chosen(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(entry.name).name == "__pycache__" else entry

    with tarfile.open(target, "w") as tar:
        for path in sorted(roots.CHECKOUT.iterdir()):
            if not path.name.startswith("."):
                tar.add(path, path.name, filter=chosen)
