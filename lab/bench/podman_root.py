"""The root of a machine that has Podman instead of Docker: one more layer on the lab's base, cached like the others."""

import os
from pathlib import Path

from lab import roots

_PODMAN = f"""
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -t {roots.NEXT_RELEASE} podman runc netavark
apt-get clean
rm -rf /var/lib/apt/lists/*
mkdir -p /etc/containers
# No journal in the lab, and no systemd to ask for cgroups. With crun, CRIU can't restore what that has written into
# version 2 of the cgroups beside version 1.
cat >/etc/containers/containers.conf <<END
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
echo '{{"default": [{{"type": "insecureAcceptAnything"}}]}}' >/etc/containers/policy.json
"""


def ensure() -> tuple[Path, ...]:
    """Make the layer if it is not cached; the layers of the root, topmost first."""
    layer = roots.Layer("podman", _PODMAN, roots.base())
    roots.ensure(with_docker28=False)
    if not layer.folder.is_dir():
        with roots.build_lock() as lock:
            if not layer.folder.is_dir():
                roots._build(layer, lock)
    os.utime(layer.folder)
    return layer.folder, roots.base().folder
