"""The disk, kernel and initial ram disk of the VM lab's machines, made from the cached roots and cached beside them.

A machine's root is the lab's own Debian 13 root with a stock cloud kernel, systemd and pytest added. The layers
that the lab builds hosts from, and its workload images, lie on the disk where the lab looks for them, so that
nothing is downloaded or built inside.
"""

import hashlib
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import images, roots, shell
from lab.shell import LabError

_IMAGES = ("busybox", "py", "layers")
_CACHE_INSIDE = "/var/cache/transship-lab"  # whatever it is called on this machine
_SIZE = "16G"  # sparse
_TEST_TOOLS = ("hypothesis", "jsonschema", "pytest", "pytest-asyncio", "pytest-timeout")
_UNIT = """\
[Unit]
Description=does what the lab asks for
After=basic.target
[Service]
Environment=HOME=/root LANG=C.UTF-8 TERM=dumb
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/usr/bin/python3 /usr/local/lib/transship-guest
Restart=always
# The lab starts daemons that outlive the command that starts them.
KillMode=process
Delegate=yes
TasksMax=infinity
[Install]
WantedBy=multi-user.target
"""
_RECIPE = f"""
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
mkdir -p /etc/initramfs-tools/conf.d
apt-get install -y -qq initramfs-tools systemd-sysv dbus udev kmod
# What this machine needs to find its disk, instead of what any machine might: the boot is emulated.
echo MODULES=list >/etc/initramfs-tools/conf.d/lab
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >>/etc/initramfs-tools/modules
apt-get install -y -qq linux-image-cloud-amd64
# What the campaign of accidents makes disks and wrong clocks with.
apt-get install -y -qq e2fsprogs faketime
apt-get clean
rm -rf /var/lib/apt/lists/*
/opt/transship/bin/pip install --quiet --no-cache-dir --constraint /tmp/constraints {" ".join(_TEST_TOOLS)}
# Its content comes with the disk.
ln -s ../transship-guest.service /etc/systemd/system/multi-user.target.wants/
# Another one is given to each machine by its kernel command line; with none it would be a first boot each time.
echo 00000000000000000000000000000001 >/etc/machine-id
# Docker runs in the lab's hosts, not in the machine around them. Nobody logs in.
for unit in docker.service docker.socket containerd.service mosquitto.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer serial-getty@ttyS0.service getty@tty1.service nftables.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
"""
# Runs in namespaces of its own. Nothing is mounted from the disk: it is written by mke2fs from the folder.
_MAKE_DISK = """
set -eu
place=$1 lowers=$2 size=$3; shift 3
mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$place/upper,workdir=$place/work" "$place/root"
while [ $# -gt 0 ]; do
    target=$place/root$2
    mkdir -p "${target%/*}"
    if [ -d "$1" ]; then mkdir -p "$target"; else : >"$target"; fi
    mount --bind "$1" "$target"
    shift 2
done
# What systemd would do after an upgrade has been done.
touch "$place/root/etc/.updated" "$place/root/var/.updated"
mke2fs -q -t ext4 -N 400000 -E assume_storage_prezeroed=1 -d "$place/root" "$place/disk" "$size"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What qemu boots."""

    disk: Path
    kernel: Path
    initrd: Path


def ensure() -> Image:
    """Make what is missing; the disk is shared by all machines, which write into overlays of their own."""
    if platform.machine() != "x86_64":
        raise LabError("the VM lab needs an x86-64 machine")
    layers = {folder for folders in roots.ensure(with_docker28=True).values() for folder in folders}
    top = _layer()
    roots.ensure_layer(top)
    inside = {f"roots/{folder.name}": folder for folder in layers}
    inside |= {f"images/{archive.name}": archive for archive in map(images.ensure, _IMAGES)}
    recipe = [top.key, _MAKE_DISK, _SIZE, *sorted(inside), *_files().values()]
    key = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]
    disk = roots.cache_folder() / "disks" / f"vm-{key}.img"
    roots.make_once(disk, lambda lock: _make_disk(disk, top, inside, lock))
    [kernel], [initrd] = top.folder.glob("boot/vmlinuz-*"), top.folder.glob("boot/initrd.img-*")
    return Image(disk, kernel, initrd)


def cached_image(name: str) -> str:
    """Tell where one of the lab's workload images lies in a machine."""
    if name not in _IMAGES:
        raise LabError(f"machines have the images {', '.join(_IMAGES)}")
    return f"{_CACHE_INSIDE}/images/{images.ensure(name).name}"


def _layer() -> roots.Layer:
    constraints = (roots.CHECKOUT / "constraints.txt").read_text()
    return roots.Layer("vm", _RECIPE, roots.venv(), (("constraints", constraints),))


def _files() -> dict[str, str]:
    """What is put on the disk beside the layers."""
    return {
        "usr/local/lib/transship-guest": Path(__file__).with_name("guest.py").read_text(),
        "etc/systemd/system/transship-guest.service": _UNIT,
    }


def _make_disk(disk: Path, top: roots.Layer, inside: dict[str, Path], lock: int) -> None:
    disk.parent.mkdir(parents=True, exist_ok=True)
    roots.remove_unused(disk.parent, keep=set())
    work = disk.with_name(".new")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("upper", "work", "root"):
        (work / name).mkdir(parents=True)
    for name, content in _files().items():
        (work / "upper" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "upper" / name).write_text(content)
    lowers = ":".join(str(layer.folder) for layer in top.chain)
    pairs = [word for name, source in inside.items() for word in (str(source), f"{_CACHE_INSIDE}/{name}")]
    isolated = ["unshare", "--mount", "--", "sh", "-c", _MAKE_DISK, "disk", str(work), lowers, _SIZE]
    shell.run([*isolated, *pairs], timeout=600, pass_fds=[lock])
    (work / "disk").rename(disk)
    shutil.rmtree(work)
