"""CRIU by hand on every storage driver: the file system is set up again as that would do it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import roots
from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import give, last_logged, state
from tests.e2e.external_support import do, goes_on, removed
from tests.e2e.support import counts_on, until

CONFIGURATION = "/etc/docker/daemon.json"
BTRFS = """
mkdir -p {place}
[ -e {place}.img ] || {{ truncate -s 3G {place}.img; mkfs.btrfs -q {place}.img; }}
[ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
for number in $(seq 0 15); do [ -e /dev/loop$number ] || mknod /dev/loop$number b 7 $number; done
mount -o loop {place}.img {place}
"""
KIND = {"overlay2": "overlay", "containerd": "overlay", "vfs": "--bind", "btrfs": "-t btrfs"}
"""In the command that mounts the root."""


@contextmanager
def stored_by(host: Host, driver: str) -> Iterator[None]:
    """Its dockerd with another storage driver, on a folder of that driver's own."""
    if driver == "containerd":
        yield
        return
    before = host.node.read(CONFIGURATION)
    place = f"/var/lib/docker/of-{driver}"
    settings = {key: value for key, value in json.loads(before).items() if key != "features"}
    host.stop_dockerd()
    try:
        if driver == "btrfs":
            layer = roots.storage_tools()
            give(host, layer, layer / "usr/sbin/mkfs.btrfs")
            host.run(["sh", "-ec", BTRFS.format(place=place)])
        host.node.write(CONFIGURATION, json.dumps({**settings, "storage-driver": driver, "data-root": place}), 0o644)
        host.start_dockerd()
        assert host.docker("info", "-f", "{{.Driver}}") == driver
        yield
    finally:
        host.stop_dockerd()
        host.node.write(CONFIGURATION, before, 0o644)
        if driver == "btrfs":
            host.run(["umount", "-d", place], check=False)
        host.start_dockerd()


@pytest.mark.parametrize("by_hand", [False, True], ids=["command", "pasted"])
@pytest.mark.parametrize(
    ("host", "driver"), [("s28", "containerd"), ("p26", "vfs"), ("s28", "vfs"), ("p26", "btrfs"), ("s28", "btrfs")]
)
async def test_a_tree_is_restored_on_its_own_files(kinds: Cluster, host: str, driver: str, by_hand: bool) -> None:
    here, name = kinds[host], f"ext-{driver}-{'hand' if by_hand else 'word'}"
    with stored_by(here, driver), removed(here, name):
        run_counter(here, name, "--volume", f"{name}:/data")
        here.docker("exec", name, "sh", "-c", "echo kept > /data/file; rm /etc/passwd")
        await counts_on(here, name)
        do(kinds, host, f"transship criu dump {name}", by_hand=by_hand)
        await until(lambda: state(here, name) == "exited", "Docker sees it end")
        last = last_logged(here, name)
        told = do(kinds, host, f"transship criu restore {name}", by_hand=by_hand)
        [mounting] = [line for line in told.splitlines() if line.startswith("mount ")]
        assert KIND[driver] in mounting
        pid = await goes_on(here, name, last)
        assert here.run(["test", "-e", f"/proc/{pid}/root/etc/passwd"], check=False).returncode != 0
        assert "/var/lib/transship/external" not in here.run(["cat", "/proc/mounts"]).stdout
