"""The disks of a host in a campaign: one for the journal and one for Docker's data, each small, to be filled.

A file on the machine that the campaign runs on, as a loop device with an ext4, mounted where the host has that data.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from lab import shell
from lab.host import Host

FILLER = "filler"


@dataclass(frozen=True, slots=True)
class Disk:
    """What a host has on a disk of its own."""

    name: str
    place: str
    """Where the host has it mounted."""
    mib: int
    seen_outside: bool = False
    """Mounted on the machine that the campaign runs on as well, in the host's place, by its name."""


JOURNAL = Disk("journal", "/var/lib/transship", 48, seen_outside=True)
DOCKER = Disk("docker-data", "/var/lib/docker", 2048)
DISKS = (JOURNAL, DOCKER)


def make(host: Host, disk: Disk) -> None:
    image = _image(host.node.place, disk)
    with image.open("wb") as file:
        file.truncate(disk.mib << 20)
    shell.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)])
    device = shell.run(["losetup", "--find", "--show", str(image)]).stdout.strip()
    _device(host, disk).write_text(device)
    if disk.seen_outside:
        (host.node.place / disk.name).mkdir()
        shell.run(["mount", device, str(host.node.place / disk.name)])
    mount(host, disk)


def mount(host: Host, disk: Disk) -> None:
    device = _device(host, disk).read_text()
    number = device.removeprefix("/dev/loop")
    script = 'rm -f "$0"; mknod "$0" b 7 "$1" && mkdir -p "$2" && mount "$0" "$2" && chmod 700 "$2"'
    host.run(["sh", "-c", script, device, number, disk.place])


def release(place: Path) -> None:
    """Let go of all disks of a host that is not there any more, or will not be."""
    for disk in DISKS:
        image = _image(place, disk)
        if image.exists():
            shell.run(["umount", "--lazy", str(place / disk.name)], check=False)
            devices = shell.run(["losetup", "--noheadings", "--output", "NAME", "-j", str(image)]).stdout.split()
            for device in devices:
                shell.run(["losetup", "--detach", device], check=False)


def fill(host: Host, disk: Disk) -> None:
    """Leave not one block free."""
    path = _filler(host, disk)
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        room = os.fstatvfs(file.fileno())
        for part in (room.f_bavail * room.f_frsize, 1 << 20):  # at once, where that can be had
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, part)
    for size in (1 << 20, 1 << 12, 1):
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))


def empty(host: Host, disk: Disk) -> None:
    _filler(host, disk).unlink(missing_ok=True)


def _filler(host: Host, disk: Disk) -> Path:
    return Path(f"/proc/{host.node.init().pid}/root{disk.place}/{FILLER}")


def _image(place: Path, disk: Disk) -> Path:
    return place / f"{disk.name}.img"


def _device(host: Host, disk: Disk) -> Path:
    return host.node.place / f"{disk.name}.device"
