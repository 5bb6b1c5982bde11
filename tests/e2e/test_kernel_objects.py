"""One of every kernel object moves in one program, which looks at each afterwards; what can't be carried is refused."""

import itertools
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.macvlan import Place, ensure_network
from lab.workloads import run_counter
from protocol.commands import Checkpoint, ReplyKind
from protocol.errors import ErrorCode
from tests.e2e.fidelity import remove, stays
from tests.e2e.support import clean, counts_on, done, until
from tests.e2e.waiting import sleeps, start_sleep

OBJECTS = Path(__file__).with_name("objects")
HELD_SECONDS = 60.0
STOPPED = ["stopped_child", "stop_not_told_yet"]
"""Where a cgroup v1 has the container, a stopped process can't be dumped (kernels from 6.1)."""


def hold(host: Host, name: str, place: Place, *left_out: str) -> None:
    """Start the program and wait until it holds everything."""
    host.ensure_image("py")
    ensure_network(host)
    mounts = ["--volume", f"{name}:/volume", "--tmpfs", "/srv/tmpfs"]
    command = ["py", "python3", "-m", "objects", *left_out]
    host.docker(
        "create", "--name", name, *place.options, *mounts, "--env", "GIVEN=by docker", "--workdir", "/", *command
    )
    host.run(["mkdir", "--parents", "/tmp/objects", "/tmp/srv"])
    for file in OBJECTS.glob("*.py"):
        host.node.write(f"/tmp/objects/{file.name}", file.read_text())
    host.docker("cp", "/tmp/objects", f"{name}:/objects")
    host.docker("cp", "/tmp/srv", f"{name}:/")
    host.docker("start", name)


async def checked(host: Host, name: str, turn: int) -> dict[str, str]:
    """Let it look at what it holds; what it says of each."""
    host.docker("exec", name, "sh", "-c", "printf x >>/check")
    end = f"checked {turn}"
    await until(lambda: end in host.docker("logs", name), "everything has been looked at", HELD_SECONDS)
    lines = host.docker("logs", name).partition(f"checked {turn - 1}\n")[2 if turn > 1 else 0].splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith(("holding", "checked")))


async def test_every_kernel_object_is_what_it_was(version2: Cluster) -> None:
    await all_objects(version2, ["v26", "v28", "v26"])


async def test_and_with_cgroup_v1(moves: Cluster) -> None:
    await all_objects(moves, ["b28", "a26"], *STOPPED)


async def test_the_tasks_are_in_the_container_s_own_cgroup(version2: Cluster) -> None:
    """Where they are not, neither limits nor `docker pause` reach them, and they can't be moved on."""
    name = "in-its-own"
    try:
        run_counter(version2["v28"], name)
        await counts_on(version2["v28"], name)
        for source, target in itertools.pairwise(["v28", "v26", "v28", "v26"]):
            reply = await version2.migrate(name, source, target)
            assert reply.kind is ReplyKind.FINISHED, f"{reply.error}"
            host = version2[target]
            await counts_on(host, name)
            identity = host.docker("inspect", "--format", "{{.Id}}", name)
            pid = host.docker("inspect", "--format", "{{.State.Pid}}", name)
            assert f"0::/docker/{identity}" in host.run(["cat", f"/proc/{pid}/cgroup"]).stdout.splitlines()
            inside = host.docker("exec", name, "cat", "/proc/1/cgroup").splitlines()
            assert "0::/" in inside, "its cgroup namespace has its own cgroup as root"
            await clean(version2, source, target)
    finally:
        remove(version2, name)


async def test_what_was_paused_before_sleeps_on(version2: Cluster) -> None:
    """With cgroup v2 a pause interrupts every call; what the kernel goes on with bears no name that a dump can read."""
    name = "paused-once"
    here, there = version2["v26"], version2["v28"]
    try:
        await start_sleep(here, name, 1000)
        await pause_once(here, name)
        reply = await version2.migrate(name, "v26", "v28")
        assert reply.kind is ReplyKind.FINISHED, f"{reply.error}"
        await sleeps(there, name)
        await pause_once(there, name)
        await done(version2, "v28", Checkpoint, container=name, leave_running=True)
        await sleeps(there, name)
        await clean(version2, "v26", "v28")
    finally:
        remove(version2, name)


async def pause_once(host: Host, name: str) -> None:
    for word in ("pause", "unpause"):
        host.docker(word, name)
    await sleeps(host, name)


async def all_objects(cluster: Cluster, way: list[str], *left_out: str) -> None:
    name = "objects"
    try:
        hold(cluster[way[0]], name, Place(170), *left_out)
        await until(lambda: "holding" in cluster[way[0]].docker("logs", name), "it holds everything", HELD_SECONDS)
        for turn, (source, target) in enumerate(itertools.pairwise(way), 1):
            reply = await cluster.migrate(name, source, target)
            assert reply.kind is ReplyKind.FINISHED, f"{reply.error}"
            found = await checked(cluster[target], name, turn)
            assert len(found) > 55
            assert {each: said for each, said in found.items() if said != "ok"} == {}
        await clean(cluster, *way)
    finally:
        for host in way:
            cluster[host].docker("rm", "--force", "--volumes", name, check=False)
            cluster[host].docker("volume", "rm", "--force", name, check=False)


REFUSED = {
    "an eventfd in semaphore mode": "import os; held = os.eventfd(0, os.EFD_SEMAPHORE)",
    "the POSIX message queue /jobs": "import ctypes; ctypes.CDLL(None).mq_open(b'/jobs', 0o102, 0o600, None)",
    "the multicast group 224.0.0.251": (
        "import socket; held = socket.socket(type=socket.SOCK_DGRAM); held.setsockopt("
        "socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('224.0.0.251') + bytes(4))"
    ),
    "MD5 signatures (TCP_MD5SIG)": (
        "import socket; held = socket.create_server(('', 7000)); held.setsockopt(6, 14, "
        "bytes([2, 0, 0, 0, 10, 77, 0, 50]) + bytes(120) + bytes([0, 0, 6, 0, 0, 0, 0, 0]) + b'secret'.ljust(80, b'.'))"
    ),
    "the interface eth0": "import socket; held = socket.socket(socket.AF_PACKET, 3); held.bind(('eth0', 3))",
    "/one, a name that is gone": ("import os; held = open('/one', 'w'); os.link('/one', '/other'); os.unlink('/one')"),
}
STOPS = "import os, signal; os.fork() or os.kill(os.getpid(), signal.SIGSTOP); os.waitpid(-1, os.WUNTRACED)"


@pytest.mark.parametrize("what", REFUSED)
async def test_what_criu_would_lose_is_refused(moves: Cluster, what: str) -> None:
    await refused(moves, "a28", REFUSED[what], what.removeprefix("an "))


async def test_a_stopped_process_is_refused_with_cgroup_v1(moves: Cluster) -> None:
    """CRIU would wait for it for ever, the container being frozen."""
    await refused(moves, "a28", STOPS, "is stopped, and can't be dumped with cgroup v1")


async def refused(moves: Cluster, source: str, program: str, message: str) -> None:
    """By name, before anything is done."""
    name, host = "refused", moves[source]
    host.ensure_image("py")
    ensure_network(host)
    code = f"{program}; import time; print('ready', flush=True); time.sleep(1000)"
    try:
        host.docker("run", "-d", "--name", name, *Place(171).options, "py", "python3", "-c", code)
        await until(lambda: "ready" in host.docker("logs", name), "it holds that")
        await stays(moves, name, source, "b26", ErrorCode.NOT_MIGRATABLE, message)
    finally:
        remove(moves, name)
