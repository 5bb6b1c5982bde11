"""The root of a machine that has Podman instead of Docker: one more layer on the lab's base, cached like the others."""

from pathlib import Path

from lab import roots

_SETTINGS = """\
mkdir -p /etc/containers
# No journal in the lab, and no systemd to ask for cgroups. With crun, CRIU can't restore what that has written into
# version 2 of the cgroups beside version 1.
cat >/etc/containers/containers.conf <<END
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
"""


def ensure() -> tuple[Path, ...]:
    """Make the layer if it is not cached; the layers of the root, topmost first."""
    recipe = roots.install(f"-t {roots.NEXT_RELEASE} podman runc netavark") + _SETTINGS
    return roots.on_top("podman", recipe).folder, roots.base().folder
