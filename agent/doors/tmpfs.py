"""File systems in memory that this agent mounts: for images, and for what it lays out for runc and CRIU to run.

Whatever holds a container's memory is a tmpfs of its own, so that one `umount` wipes it.
"""

import os
from pathlib import Path

from agent.base.shell import Shell

HOME = Path("/run/transship")
HOME_SOURCE = "transship-run"
"""What it is called in the table of mounts; images are `transship`."""


async def make_home(shell: Shell, home: Path = HOME) -> None:
    """Make sure that what lies in /run/transship can be run: CRIU calls scripts, containers have programs of --init.

    Debian's initramfs mounts /run noexec (initramfs-tools, /init). What lies there already could not be run either, and
    is covered.
    """
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    if os.statvfs(home).f_flag & os.ST_NOEXEC:
        options = "mode=0711,nosuid,nodev,exec"
        await shell.run("mount", "-t", "tmpfs", "-o", options, HOME_SOURCE, str(home), label="mount")


async def mount(shell: Shell, path: Path, size: int) -> None:
    """A tmpfs of at most `size` bytes for memory images; root only. One that is there already is used."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.is_mount():
        await shell.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "transship", str(path), label="mount")


async def unmount(shell: Shell, path: Path) -> None:
    """Make sure that nothing is mounted there; the memory images go with it."""
    if path.is_mount():
        await shell.run("umount", "--lazy", str(path), label="umount")
