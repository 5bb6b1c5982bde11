"""What CRIU restores beside Docker, seen from the host: what it has printed and written, and where it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.cluster import Cluster
from lab.host import Host
from lab.shell import wait_until
from lab.workloads import rows
from tests.e2e.archives import remove, run, state
from tests.e2e.support import until


def kept(host: Host, name: str, file: str) -> str:
    found = host.docker("inspect", "-f", "{{.Id}}", name)
    return host.run(["cat", f"/var/lib/transship/external/{found[:12]}/{file}"]).stdout


def printed(host: Host, name: str) -> list[int]:
    return [int(line) for line in kept(host, name, "stdout").split()[:-1]]


def written(host: Host, pid: int) -> list[int]:
    """What the restored one has written into its file so far, seen through its own root."""
    return [number for number, _ in rows(host.run(["cat", f"/proc/{pid}/root/count"], check=False).stdout)]


async def goes_on(host: Host, name: str, last: int) -> int:
    """It counts on from where it was, with its volume and its address; its first process."""
    pid = int(kept(host, name, "work/pid"))
    await until(lambda: max(written(host, pid), default=0) > last + 20, f"{name} counts on beside Docker")
    numbers = written(host, pid)
    assert numbers == list(range(1, numbers[-1] + 1)), "none is missing, none came twice"
    assert host.run(["cat", f"/proc/{pid}/root/data/file"]).stdout == "kept\n"
    assert state(host, name) == "exited"
    mounts = {line.split()[4] for line in host.run(["cat", f"/proc/{pid}/mountinfo"]).stdout.splitlines()}
    assert {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/data"} <= mounts
    for place in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
        key = {"/etc/hostname": "HostnamePath", "/etc/hosts": "HostsPath", "/etc/resolv.conf": "ResolvConfPath"}[place]
        of_docker = host.docker("inspect", "-f", f"{{{{.{key}}}}}", name)
        assert host.run(["cat", f"/proc/{pid}/root{place}"]).stdout == host.run(["cat", of_docker]).stdout
    found = host.docker("inspect", "-f", "{{.Id}}", name)
    groups = host.run(["cat", f"/proc/{pid}/cgroup"]).stdout
    assert f":freezer:/docker/{found}" in groups, "its cgroups are those that it had"
    assert host.run(["readlink", f"/proc/{pid}/fd/0"]).stdout == "/dev/null\n"
    return pid


def do(keeps: Cluster, host: str, words: str, *, by_hand: bool) -> str:
    """By the command; or the commands that it prints, pasted into a shell. What it has printed."""
    if not by_hand:
        said = run(keeps, host, f"{words} -v").stdout
        assert "criu " in said
        return said
    script = run(keeps, host, f"{words} --dry-run").stdout
    keeps[host].run(["sh", "-ec", script], timeout=120)
    return script


@contextmanager
def removed(host: Host, name: str) -> Iterator[None]:
    """A container, and what is restored of it beside Docker, are gone after the block, however that ends."""
    try:
        yield
    finally:
        _end(host, name)
        remove(host, name)
        host.run(["sh", "-c", "rm -rf /var/lib/transship/external/*"], check=False)


def _end(host: Host, name: str) -> None:
    """End what was restored, with the cgroups that CRIU has made for it: nobody else removes them."""
    found = host.docker("inspect", "-f", "{{.Id}}", name, check=False)
    pid = host.run(["cat", f"/var/lib/transship/external/{found[:12]}/work/pid"], check=False).stdout.strip()
    if not found or not pid:
        return
    host.run(["kill", "-9", pid], check=False)
    words = f"find /sys/fs/cgroup -depth -type d -path '*docker/{found}*' -exec rmdir {{}} +"
    wait_until("the cgroups are empty", lambda: host.run(["sh", "-c", words], check=False).returncode == 0, 10)
