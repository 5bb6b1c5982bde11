"""From a wheel and a Debian package, as a user installs it; and by the command line, as a user moves a container."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import deb
from lab.cluster import TRANSSHIP, Cluster
from lab.host import Engine, HostSpec
from lab.service import Mode
from lab.workloads import run_counter
from tests.e2e.archives import controller
from tests.e2e.support import clean, counts_on

A, B = "ia", "ib"


@pytest.fixture(scope="module")
def installed() -> Iterator[Cluster]:
    specs = [HostSpec(A, Engine.DOCKER28), HostSpec(B, Engine.DOCKER26)]
    cluster = Cluster.up("install", specs, mode=Mode.INSTALL)
    try:
        yield cluster
    finally:
        cluster.lab.down()


def command(cluster: Cluster, *words: str) -> list[dict[str, object]]:
    """The command line on a host, as the controller; its JSON lines."""
    done = cluster[A].run([TRANSSHIP, *words, "--json"], env=controller(cluster), timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


async def test_a_container_moves_by_the_command_line(installed: Cluster) -> None:
    run_counter(installed[A], "moved")
    await counts_on(installed[A], "moved")
    found = installed[A].run(["/opt/transship/bin/python", "-c", "import agent; print(agent.__file__)"]).stdout
    assert "site-packages" in found, "it is the wheel that runs, not the checkout"
    last = command(installed, "migrate", "moved", "--to", B)[-1]
    assert last["ok"], last
    await counts_on(installed[B], "moved")
    await clean(installed, A, B)


async def test_a_container_created_with_the_runtime_is_an_ordinary_one(installed: Cluster) -> None:
    """Every call that is not a migration's is passed on to runc."""
    host = installed[A]
    host.ensure_image("busybox")
    run = ["run", "--runtime", "transship", "--name", "ordinary"]
    assert host.docker(*run, "--rm", "busybox", "echo", "hello") == "hello"
    host.docker(*run, "-d", "busybox", "sleep", "1000")
    assert host.docker("exec", "ordinary", "echo", "inside") == "inside"
    host.docker("pause", "ordinary")
    host.docker("unpause", "ordinary")
    host.docker("stop", "--time", "1", "ordinary")
    host.docker("start", "ordinary")
    host.docker("rm", "--force", "ordinary")
    assert host.docker("run", "--runtime", "transship", "--rm", "busybox", "sh", "-c", "exit 7", check=False) == ""


def verdicts(cluster: Cluster, host: str, *words: str) -> dict[str, str]:
    """What `doctor` finds, by what it looks at."""
    argv = [TRANSSHIP, "doctor", "--json", *words]
    done = cluster[host].run(argv, check=False, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert (lines[-1]["ok"], done.returncode) in {(True, 0), (False, 1)}
    return {f"{one['what']}: {one['said']}": one["verdict"] for one in lines[:-1]}


def test_a_host_that_was_set_up_is_all_green_and_stays_so(installed: Cluster) -> None:
    """What is broken is found; what can be mended without a risk is, and the rest is left alone."""
    for host in (A, B):
        found = verdicts(installed, host)
        assert set(found.values()) == {"good"}, found
        assert {"broker access", "nftables", "journal", "leftovers", f"peer {B if host == A else A}"} <= {
            each.partition(":")[0] for each in found
        }
    orphan = "/run/transship/dump/m-0123456789abcdef"
    broken = (
        f"mkdir -p {orphan}/images; chmod 644 /etc/transship/pki/host.key; chmod 755 /var/lib/transship; "
        "echo >>/usr/local/bin/transship-runtime"
    )
    installed[A].run(["sh", "-ec", broken])
    found = verdicts(installed, A)
    wrong = {each.partition(":")[0] for each, verdict in found.items() if verdict != "good"}
    assert wrong == {"leftovers", "certificates", "folder", "launcher"}, found
    assert set(verdicts(installed, A, "--fix").values()) == {"good"}
    assert installed[A].run(["test", "-e", orphan], check=False).returncode == 1


def test_a_container_that_nobody_holds_is_named_and_left_as_it_is(installed: Cluster) -> None:
    host = installed[A]
    host.ensure_image("busybox")
    container = host.docker("run", "--detach", "--name", "mute", "busybox", "sleep", "1000").strip()
    pid = host.docker("inspect", "--format", "{{.State.Pid}}", "mute")
    try:
        host.run(["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "add", "table", "inet", "transship"])
        for words in ((), ("--fix",)):
            found = verdicts(installed, A, *words)
            [named] = [each for each, verdict in found.items() if verdict == "missing"]
            assert container[:12] in named
    finally:
        host.docker("rm", "--force", "mute")


async def test_the_debian_package_takes_a_container_and_goes_without_a_trace(
    installed: Cluster, tmp_path: Path
) -> None:
    """In the place of the wheel on one host: installed, it restores a container; removed, dockerd knows it no more."""
    host = installed[B]
    for name in host.docker("ps", "--all", "--quiet").split():  # what came here before needs the runtime
        host.docker("rm", "--force", name)
    host.agent.stop()
    host.run([TRANSSHIP, "setup", "--remove"])
    with deb.build(tmp_path).open("rb") as package:
        host.node.run(["install", "/dev/stdin", "/root/transship.deb"], stdin=package)
    host.run(["dpkg", "--force-confold", "--install", "/root/transship.deb"], timeout=180)  # the settings are ours
    assert host.run(["transship", "version"]).stdout.startswith("transship ")
    # the lab starts the agent from where it has put it: that is the package's from here on
    host.run(["ln", "--force", "--symbolic", "/usr/bin/transship", TRANSSHIP])
    host.start_agent()
    await installed.until_ready()
    run_counter(installed[A], "packed")
    assert command(installed, "migrate", "packed", "--to", B)[-1]["ok"]
    await counts_on(host, "packed")
    await clean(installed, A, B)
    running = host.run(["sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '"], check=False).stdout
    assert f"/usr/bin/python3 -I {TRANSSHIP} agent" in running, "it is the package's program that took it"

    refused = host.run(["dpkg", "--remove", "transship"], check=False, timeout=60)
    assert "could not be started again: packed" in refused.stdout + refused.stderr
    host.docker("rm", "--force", "packed")
    host.agent.stop()
    host.run(["dpkg", "--purge", "transship"], timeout=60)
    assert "transship" not in host.docker("info", "--format", "{{.Runtimes}}")
    left = host.run(
        ["find", "/usr/lib/transship", "/usr/bin/transship", "/etc/transship", "/usr/local/bin"], check=False
    )
    assert left.stdout.split() == ["/usr/local/bin"]
