"""Checkpoints where containers have users of their own (userns-remap), and where containerd keeps the images."""

import json

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import last_logged, remove, run, said, state
from tests.e2e.support import clean, counts_on

WAYS = [("u26", "v28"), ("v28", "u26"), ("s28", "p26"), ("p26", "s28")]
IDS = ["userns 26-28", "userns 28-26", "containerd-overlay2", "overlay2-containerd"]


def start(host: Host, name: str) -> None:
    """It counts, and has a file of another user, one in a volume, one of the image deleted and a folder made opaque."""
    run_counter(host, name, "--volume", f"{name}-data:/data", "--restart", "unless-stopped")
    words = "echo kept > /data/file; chown 33:33 /data/file; rm -rf /etc/passwd /usr/share/doc; mkdir -p /usr/share/doc"
    host.docker("exec", name, "sh", "-c", f"{words}; echo mine > /own; chown 1000:1000 /own")


def as_it_was(host: Host, name: str) -> None:
    words = (
        "stat -c %u:%g /own /data/file; cat /own /data/file; ls -A /usr/share/doc; test ! -e /etc/passwd && echo gone"
    )
    found = host.docker("exec", name, "sh", "-c", words)
    assert found.split() == ["1000:1000", "33:33", "mine", "kept", "gone"]


@pytest.mark.parametrize(("source", "target"), WAYS, ids=IDS)
async def test_it_is_taken_cloned_here_and_restored_there(kinds: Cluster, source: str, target: str) -> None:
    here, there, name = kinds[source], kinds[target], f"kind-{source}"
    archive = f"/root/{name}.tar.zst"
    try:
        start(here, name)
        await counts_on(here, name)
        said(kinds, source, f"transship checkpoint {name} --leave-running --to {archive}")
        assert "sound" in run(kinds, source, f"transship inspect {archive} --verify").stdout
        said(kinds, source, f"transship restore {archive} --name {name}-two")
        await counts_on(here, f"{name}-two")
        as_it_was(here, f"{name}-two")
        remove(here, f"{name}-two")
        await counts_on(here, name)
        taken = said(kinds, source, f"transship checkpoint {name} --with-image")
        assert state(here, name) == "exited"
        last = last_logged(here, name)
        for host in (here, there):
            remove(here, name)
            here.docker("volume", "rm", f"{name}-data")
            said(kinds, source, f"transship restore {taken['id']} {f'--on {target}' if host is there else ''}")
            assert last in (await counts_on(host, name)).logged
            as_it_was(host, name)
        await clean(kinds, source, target)
    finally:
        for host in (here, there):
            remove(host, name, f"{name}-two")
            host.docker("volume", "rm", f"{name}-data", f"{name}-two-{name}-data", check=False)


@pytest.mark.parametrize(("source", "target"), [("u26", "p26"), ("p26", "u26")])
async def test_users_of_their_own_are_not_mixed_up_with_those_of_the_host(
    kinds: Cluster, source: str, target: str
) -> None:
    """What can't go on as it was is refused before anything is made."""
    here, there, name = kinds[source], kinds[target], f"mixed-{source}"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        taken = said(kinds, source, f"transship checkpoint {name} -R --with-image")
        refused = run(kinds, source, f"transship restore {taken['id']} --on {target} --json", check=False)
        assert refused.returncode == 2
        assert "userns" in json.loads(refused.stdout)["error"]["message"]
        assert state(there, name) == ""
        await counts_on(here, name)
        await clean(kinds, source, target)
    finally:
        remove(here, name)
        remove(there, name)
