"""The hosts that the lab is tested with, and a container on one of them that counts."""

import hashlib
from pathlib import Path

from lab import Engine, Host, HostSpec

CHECKOUT = Path(__file__).parents[2]
# Fixed for a checkout, so that what a killed test run left is removed by the next one.
NAME = "t" + hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]
OTHER = NAME.replace("t", "u", 1)

HOSTS = [
    HostSpec("plain26", Engine.DOCKER26),
    HostSpec("plain28", Engine.DOCKER28),
    HostSpec("userns26", Engine.DOCKER26, userns_remap=True),
    HostSpec("userns28", Engine.DOCKER28, userns_remap=True),
    HostSpec("store28", Engine.DOCKER28, containerd_store=True),
    HostSpec("cgroup2", Engine.DOCKER28, cgroup2=True),
]
COUNTER = "import itertools, time\nfor i in itertools.count():\n    print(i, flush=True)\n    time.sleep(0.02)"


def start_counter(host: Host, name: str, *options: str) -> str:
    """Run a counting container and return its id; `name` must be new on this host."""
    host.ensure_image("py")
    host.docker("run", "--detach", "--name", name, *options, "py", "python3", "-c", COUNTER)
    return host.docker("inspect", "--format", "{{.Id}}", name)
