"""Podman takes an archive of ours, with two lines in CRIU's configuration there; of its own we say that it is not."""

import json
from collections.abc import Iterator

import pytest

from lab import images
from lab.bench import podman_root
from lab.cluster import Cluster
from lab.naming import state_folder
from lab.network import Address
from lab.node import Node
from lab.workloads import rows, run_counter
from tests.e2e.archives import copy, give_tools, last_logged, remove, run
from tests.e2e.support import counts_on, until

CONFIG = "tcp-close\nskip-file-rwx-check\n"
"""docs/checkpoints.md says why."""


@pytest.fixture(scope="module")
def podman(keeps: Cluster) -> Iterator[Node]:
    """A machine beside the hosts that has Podman and no Docker."""
    place = state_folder() / keeps.lab.name / "podman"
    node = Node(keeps.lab.name, "podman", place, podman_root.ensure(), keeps.lab.switch, Address(61))
    node.seed("/etc/hosts", "127.0.0.1 localhost\n")
    node.seed("/etc/resolv.conf", "# no name server in the lab\n")
    node.seed("/etc/criu/runc.conf", CONFIG)
    node.start()
    try:
        with images.ensure("py").open("rb") as archive:
            node.run(["podman", "load", "--quiet"], stdin=archive, timeout=300)
        yield node
    finally:
        node.remove()


@pytest.mark.parametrize("host", ["a26", "b28"])
async def test_podman_imports_an_archive_of_ours(keeps: Cluster, podman: Node, host: str) -> None:
    here, name = keeps[host], f"pod-{host}"
    try:
        run_counter(here, name)
        here.docker("exec", name, "rm", "-f", "/etc/passwd")
        await counts_on(here, name)
        run(keeps, host, f"transship checkpoint {name} --to /root/pod.tar.zst")
        last = last_logged(here, name)
        copy(here, podman, "/root/pod.tar.zst")
        podman.run(["podman", "container", "restore", "--import", "/root/pod.tar.zst"], timeout=120)

        def numbers() -> list[int]:
            text = podman.run(["podman", "exec", name, "cat", "/count"], check=False).stdout
            return [number for number, _ in rows(text)]

        await until(lambda: max(numbers(), default=0) > last + 20, "it counts on under Podman")
        found = numbers()
        assert found == list(range(1, found[-1] + 1)), "none is missing, none came twice"
        assert podman.run(["podman", "exec", name, "test", "-e", "/etc/passwd"], check=False).returncode != 0
        restored = podman.run(["podman", "inspect", "--format", "{{.State.Restored}}", name])
        assert restored.stdout.strip() == "true"
    finally:
        podman.run(["podman", "rm", "--force", "--time", "0", name], check=False)
        remove(here, name)


async def test_an_export_of_podman_s_is_refused_by_name(keeps: Cluster, podman: Node) -> None:
    """Its dump has mounts that no container of Docker's has: so it could not be restored in one."""
    host = keeps["b28"]
    give_tools(host)
    podman.run(["podman", "run", "-d", "--name", "theirs", "py", "python3", "-c", "import time; time.sleep(1e6)"])
    podman.run(["podman", "container", "checkpoint", "--export", "/root/theirs.tar.zst", "theirs"], timeout=120)
    copy(podman, host, "/root/theirs.tar.zst")
    refused = run(keeps, "b28", "transship restore /root/theirs.tar.zst", check=False)
    assert refused.returncode == 2
    assert "not an archive that transship has written" in refused.stderr
    [found] = json.loads(run(keeps, "b28", "checkpointctl inspect /root/theirs.tar.zst --mounts --format json").stdout)
    assert "/run/.containerenv" in json.dumps(found["mounts"])
