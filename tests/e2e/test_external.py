"""CRIU straight on a container's processes: what counted goes on counting, beside Docker; by the command or by hand."""

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.workloads import run_counter
from tests.e2e.archives import address, last_logged, remove, run, state
from tests.e2e.support import counts_on, until

HOSTS = ["a26", "b28"]


def kept(host: Host, name: str, file: str) -> str:
    found = host.docker("inspect", "-f", "{{.Id}}", name)
    return host.run(["cat", f"/var/lib/transship/external/{found[:12]}/{file}"]).stdout


def printed(host: Host, name: str) -> list[int]:
    return [int(line) for line in kept(host, name, "stdout").split()[:-1]]


def written(host: Host, pid: int) -> list[int]:
    """What the restored one has written into its file so far, seen through its own root."""
    rows = host.run(["cat", f"/proc/{pid}/root/count"], check=False).stdout.splitlines()
    return [int(row.split()[0]) for row in rows if row.count(" ") == 1]


async def goes_on(host: Host, name: str, last: int) -> int:
    """It counts on from where it was, with its volume and its address; its first process."""
    pid = int(kept(host, name, "work/pid"))
    await until(lambda: max(written(host, pid), default=0) > last + 20, f"{name} counts on beside Docker")
    numbers = written(host, pid)
    assert numbers == list(range(1, numbers[-1] + 1)), "none is missing, none came twice"
    assert host.run(["cat", f"/proc/{pid}/root/data/file"]).stdout == "kept\n"
    assert state(host, name) == "exited"
    return pid


@pytest.mark.parametrize("by_hand", [False, True], ids=["command", "pasted"])
@pytest.mark.parametrize("host", HOSTS)
async def test_a_tree_is_dumped_and_restored_beside_docker(keeps: Cluster, host: str, by_hand: bool) -> None:
    here, name = keeps[host], f"ext-{host}-{'hand' if by_hand else 'word'}"
    pid = 0
    try:
        run_counter(here, name, "--volume", f"{name}:/data", "--restart", "always")
        here.docker("exec", name, "sh", "-c", "echo kept > /data/file")
        await counts_on(here, name)
        before = address(here, name)
        do(keeps, host, f"transship criu dump {name}", by_hand=by_hand)
        await until(lambda: state(here, name) == "exited", "Docker sees it end")
        last = last_logged(here, name)
        do(keeps, host, f"transship criu restore {name}", by_hand=by_hand)
        pid = await goes_on(here, name, last)
        assert before in here.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "address"]).stdout
        await until(lambda: max(printed(here, name), default=0) > last, "what it prints goes on in a file")
        mounts = here.run(["cat", "/proc/mounts"]).stdout
        assert "/var/lib/transship/external" not in mounts, "what was set up is taken down again"
        assert "transship-" not in here.run(["ip", "netns"]).stdout
    finally:
        if pid:
            here.run(["kill", "-9", str(pid)], check=False)
        remove(here, name)
        here.run(["sh", "-c", "rm -rf /var/lib/transship/external/*"], check=False)


def do(keeps: Cluster, host: str, words: str, *, by_hand: bool) -> None:
    """By the command; or the commands that it prints, pasted into a shell."""
    if not by_hand:
        assert "criu " in run(keeps, host, f"{words} -v").stdout
        return
    script = run(keeps, host, f"{words} --dry-run").stdout
    keeps[host].run(["sh", "-ec", script], timeout=120)


async def test_it_can_go_on_after_the_dump(keeps: Cluster) -> None:
    here, name = keeps["b28"], "ext-on"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, "b28", f"transship criu dump {name} --leave-running")
        await counts_on(here, name)
        refused = run(keeps, "b28", f"transship criu restore {name}", check=False)
        assert refused.returncode == 2
        assert "share its files" in refused.stderr
    finally:
        remove(here, name)


async def test_a_restore_that_fails_leaves_nothing_set_up(keeps: Cluster) -> None:
    here, name = keeps["b28"], "ext-fails"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        run(keeps, "b28", f"transship criu dump {name}")
        here.run(["sh", "-c", "rm /var/lib/transship/external/*/images/inventory.img"])
        failed = run(keeps, "b28", f"transship criu restore {name}", check=False)
        assert failed.returncode == 1
        assert "restore.log" in failed.stderr
        assert "/var/lib/transship/external" not in here.run(["cat", "/proc/mounts"]).stdout
        assert "transship-" not in here.run(["ip", "netns"]).stdout
    finally:
        remove(here, name)
