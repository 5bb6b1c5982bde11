"""Door, inventory, spec and obstacles against real engines: Docker 26, Docker 28.5, and the containerd image store."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.base.errors import DockerFailed
from agent.doors.docker import Docker, unavailable
from agent.doors.docker_model import Container
from agent.inventory import Inventory
from agent.migration import fields, fitting, spec
from lab import Engine, Host, HostSpec, Lab, shell
from protocol.status import ContainerStatus, Event
from protocol.status import Engine as EngineStatus

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")]

CHECKOUT = Path(__file__).parents[2]
NAME = "d" + hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]
TABLE: dict[str, Any] = json.loads((CHECKOUT / "tests/unit/data/containers.json").read_text())
HOSTS = [
    HostSpec("d26", Engine.DOCKER26),
    HostSpec("d28", Engine.DOCKER28),
    HostSpec("store28", Engine.DOCKER28, containerd_store=True),
]
# Without the controllers of cgroup v2, which belong to the outer machine: good for looking, not for limits.
CGROUP2 = HostSpec("cgroup2", Engine.DOCKER28, cgroup2=True)
# An OCI runtime that holds `create` until it is let go, as the agent's own does on a target.
HOLD = """#!/bin/sh
case " $* " in *" create "*) until [ -e /run/let-go ]; do sleep 0.05; done ;; esac
exec runc "$@"
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(NAME, [*HOSTS, CGROUP2]) as lab:
        for host in lab.hosts.values():
            host.ensure_image("busybox")
            host.ensure_image("py")
            host.node.write("/usr/local/bin/hold", HOLD, 0o755)
            configuration = json.loads(host.node.read("/etc/docker/daemon.json"))
            configuration["runtimes"] = {"hold": {"path": "/usr/local/bin/hold"}}
            host.node.write("/etc/docker/daemon.json", json.dumps(configuration), 0o644)
            host.run(["sh", "-c", "kill -HUP $(cat /run/docker.pid)"])
        yield lab


@pytest.fixture(params=[found.name for found in HOSTS])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab[request.param]


def door(host: Host) -> Docker:
    """The door to a host's dockerd: its socket is reached through its root file system."""
    return Docker(f"unix:///proc/{host.node.init().pid}/root/run/docker.sock", timeout=20)


@pytest.fixture
async def docker(host: Host) -> AsyncIterator[Docker]:
    async with door(host) as found:
        yield found
        for row in await found.list():
            await found.remove(row.id, volumes=True)


SLEEP = {"Image": "busybox", "Cmd": ["sleep", "1000"]}


# The door


async def test_an_engine_says_what_it_is(host: Host, docker: Docker) -> None:
    engine = await docker.engine("hold")
    assert engine.docker.startswith("26.1" if host.spec.engine is Engine.DOCKER26 else "28.5")
    assert engine.image_store == ("containerd" if host.spec.containerd_store else "graphdriver")
    assert engine.runc.startswith("1.")
    assert engine.runtime_registered
    assert not (await docker.engine("nothing")).runtime_registered
    assert await docker.data_root() == "/var/lib/docker"


async def test_an_engine_on_cgroup_v2_says_so(lab: Lab) -> None:
    async with door(lab["cgroup2"]) as docker:
        assert (await docker.engine()).cgroup_version == 2
    async with door(lab["d28"]) as docker:
        assert (await docker.engine()).cgroup_version == 1


async def test_a_containers_life(docker: Docker) -> None:
    host_config = {"RestartPolicy": {"Name": "always"}, "PortBindings": {"80/tcp": [{"HostPort": "8099"}]}}
    made = await docker.create("one", {**SLEEP, "ExposedPorts": {"80/tcp": {}}, "HostConfig": host_config})
    async with docker.events(time.time_ns()) as events:
        await docker.start(made)
        await docker.start(made)  # already so
        while (event := await anext(events)).action != "start":
            assert event.container_id == made
    found = await docker.inspect("one")
    assert (found.id, found.state, found.restart_policy["Name"]) == (made, "running", "always")
    assert found.pid
    assert 0 < await docker.memory(made) < 64 << 20
    [row] = await docker.list()
    assert (row.id, row.name, row.state, row.ports) == (made, "one", "running", ((8099, "tcp"),))
    await docker.set_restart_policy(made, {"Name": "no"})
    await docker.rename(made, "two")
    found = await docker.inspect("two")
    assert (found.name, found.restart_policy["Name"]) == ("two", "no")
    assert await docker.kill(made)
    assert await docker.wait_exit(made) == 137
    assert not await docker.kill(made)
    await docker.remove(made)
    await docker.remove(made)
    assert await docker.find(made) is None


async def test_removals_at_the_same_time_all_end_well(docker: Docker) -> None:
    made = await docker.create("one", SLEEP)
    await docker.start(made)
    await asyncio.gather(*(docker.remove(made) for _ in range(5)))
    assert await docker.list() == ()


async def test_a_stop_takes_as_long_as_it_is_given(docker: Docker) -> None:
    made = await docker.create(
        "one", {"Image": "busybox", "Cmd": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]}
    )
    await docker.start(made)
    began = time.monotonic()
    await docker.stop(made, seconds=1)
    assert 1 <= time.monotonic() - began < 15
    await docker.stop(made)
    await docker.stop("nothing")


async def test_a_taken_name_is_dockers_own_sentence(docker: Docker) -> None:
    await docker.create("one", SLEEP)
    with pytest.raises(DockerFailed, match="is already in use") as failed:
        await docker.create("one", SLEEP)
    assert failed.value.http_status == 409


async def test_running_execs(host: Host, docker: Docker) -> None:
    made = await docker.create("one", SLEEP)
    await docker.start(made)
    assert await docker.running_execs(await docker.inspect(made)) == ()
    host.docker("exec", "--detach", "one", "sleep", "999")
    [found] = await docker.running_execs(await docker.inspect(made))
    assert found.command == "sleep 999"
    assert found.pid


async def test_a_start_that_is_held_can_be_cancelled_and_holds_up_nothing_else(host: Host, docker: Docker) -> None:
    host.run(["rm", "-f", "/run/let-go"])
    held = await docker.create("held", {**SLEEP, "HostConfig": {"Runtime": "hold"}})
    other = await docker.create("other", SLEEP)
    starting = asyncio.create_task(docker.start(held))
    done, _ = await asyncio.wait({starting}, timeout=1)
    assert not done
    await docker.start(other)
    assert {row.name: row.state for row in await docker.list()} == {"held": "created", "other": "running"}
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert docker._opened is not None
    assert not docker._opened[1]._acquired
    # dockerd goes on with what it was asked, whoever has gone.
    host.run(["touch", "/run/let-go"])
    found = await docker.inspect(held)
    assert found.state in ("created", "running")
    await docker.start(held)
    assert (await docker.inspect(held)).state == "running"


async def test_networks_and_volumes(docker: Docker) -> None:
    await docker.create_network({"Name": "net", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.92.0.0/24"}]}})
    found = await docker.network("net")
    assert found is not None
    assert (found.name, found.driver, found.addresses) == ("net", "bridge", ())
    made = await docker.create("one", {**SLEEP, "HostConfig": {"NetworkMode": "net"}})
    await docker.start(made)
    found = await docker.network("net")
    assert found is not None
    assert found.addresses == ("10.92.0.2/24",)
    with pytest.raises(DockerFailed, match="active endpoints"):
        await docker.remove_network("net")
    await docker.remove(made)
    await docker.remove_network("net")
    await docker.remove_network("net")
    volume = await docker.create_volume({"Name": "vol", "Labels": {"a": "b"}})
    assert await docker.volume("vol") == volume
    assert volume.mountpoint.endswith("/vol/_data")
    await docker.remove_volume("vol")
    await docker.remove_volume("vol")


@pytest.mark.parametrize("target", [found.name for found in HOSTS])
async def test_an_image_goes_from_one_engine_to_the_other_as_a_stream(lab: Lab, docker: Docker, target: str) -> None:
    image = await docker.image("py")
    assert image is not None
    await docker.tag_image(image.id, "moved", "1")
    async with door(lab[target]) as there:
        loaded = await there.load_image(docker.save_image("moved:1"))
        assert loaded == ("moved:1",)
        found = await there.image("moved:1")
        assert found is not None
        assert (found.diff_ids, found.config, found.architecture) == (image.diff_ids, image.config, image.architecture)
        assert found.id in {one.id for one in await there.images()}
        await there.remove_image("moved:1")
        await docker.remove_image("moved:1")
        assert await there.image("moved:1") is None


async def test_what_is_no_image_is_not_loaded(docker: Docker) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"no tar!!" * 8192

    with pytest.raises(DockerFailed, match="tar"):
        await docker.load_image(garbage())


async def test_a_broken_source_of_an_image_is_what_is_raised(docker: Docker) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in docker.save_image("busybox"):
            yield chunk
            raise ConnectionResetError("the peer went away")

    before = await docker.images()
    with pytest.raises(ConnectionResetError, match="the peer went away"):
        await docker.load_image(broken())
    assert await docker.images() == before


# The inventory


class Told:
    """A publisher that keeps the newest of all."""

    def __init__(self) -> None:
        self.containers: dict[str, ContainerStatus] = {}
        self.engines: list[bool] = []
        self.kinds: list[str] = []
        self.changed = asyncio.Event()

    async def engine_changed(self, engine: EngineStatus | None) -> None:
        self.engines.append(engine is not None)
        self.changed.set()

    async def publish_container(self, container: ContainerStatus) -> None:
        self.containers[container.id] = container
        self.changed.set()

    async def remove_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)
        self.changed.set()

    async def listed(self) -> None:
        """All is published."""

    async def publish_event(self, event: Event) -> None:
        self.kinds.append(event.kind)
        self.changed.set()

    async def shows(self, container: str, seconds: float = 1.0, **wanted: str) -> None:
        """Wait until a container is so; nothing wanted, until it is gone."""
        async with asyncio.timeout(seconds):
            while True:
                found = self.containers.get(container)
                so = {key: getattr(found, key) for key in wanted} if found else {}
                if (found is None and not wanted) or (found is not None and wanted and so == wanted):
                    return
                self.changed.clear()
                await self.changed.wait()


async def test_changes_are_told_within_a_second(host: Host, docker: Docker) -> None:
    told = Told()
    following = asyncio.create_task(Inventory(docker, host.name, told).run())
    try:
        while not told.engines:
            await asyncio.sleep(0.01)
        probe = {"Test": ["CMD", "test", "-e", "/well"], "Interval": 200_000_000, "Retries": 1}
        made = await docker.create("one", {**SLEEP, "Healthcheck": probe})
        await told.shows(made, name="one", state="created")
        await docker.start(made)
        await told.shows(made, state="running")
        await told.shows(made, seconds=3, health="unhealthy")
        host.docker("exec", "one", "touch", "/well")
        await told.shows(made, seconds=3, health="healthy")
        await docker.rename(made, "two")
        await told.shows(made, name="two")
        host.docker("pause", "two")
        await told.shows(made, state="paused")
        host.docker("unpause", "two")
        await told.shows(made, state="running")
        host.docker("restart", "--time", "0", "two")
        await told.shows(made, state="running")
        await docker.kill(made)
        await told.shows(made, state="exited")
        await docker.remove(made)
        await told.shows(made)
        assert {"create", "start", "die", "rename", "pause", "unpause", "kill", "restart", "destroy"} <= set(told.kinds)
        assert not [kind for kind in told.kinds if kind.startswith("exec")]
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def test_a_dockerd_that_restarts_is_followed_again(host: Host, docker: Docker) -> None:
    made = await docker.create("one", {**SLEEP, "HostConfig": {"RestartPolicy": {"Name": "always"}}})
    await docker.start(made)
    told, died = Told(), asyncio.Event()
    inventory = Inventory(docker, host.name, told)

    async def hear(event: Any) -> None:
        if event.action == "die" and event.container_id == made:
            died.set()

    inventory.on_event(hear)
    following = asyncio.create_task(inventory.run())
    try:
        await told.shows(made, seconds=5, state="running")
        await asyncio.to_thread(host.kill_dockerd)
        async with asyncio.timeout(5):
            while told.engines[-1]:
                await asyncio.sleep(0.02)
        with pytest.raises(DockerFailed) as failed:
            await docker.list()
        assert unavailable(failed.value) is not None
        await asyncio.to_thread(host.start_dockerd)
        async with asyncio.timeout(30):
            while not told.engines[-1]:
                await asyncio.sleep(0.02)
            await died.wait()
        await told.shows(made, seconds=20, state="running")
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


# The spec: every container of the table, described on one engine and created on another


def make(host: Host) -> None:
    for name, lines in TABLE["images"].items():
        source = host.docker("create", "busybox", "true").strip()
        host.docker("commit", *(word for line in lines for word in ("--change", line)), source, name)
        host.docker("rm", source)
    for name, options in TABLE["networks"].items():
        host.docker("network", "create", *options, name)
    for name, options in TABLE["volumes"].items():
        host.docker("volume", "create", *options, name)
    for options in TABLE["containers"].values():
        host.docker("run", "--detach", *options)
    for network, name, *options in TABLE["connect"]:
        host.docker("network", "connect", *options, network, name)


def clear(host: Host) -> None:
    host.run(["docker", "rm", "--force", "--volumes", *TABLE["containers"]], check=False)
    host.run(["sh", "-c", "docker volume rm $(docker volume ls --quiet)"], check=False)
    host.run(["docker", "network", "rm", *TABLE["networks"]], check=False)
    host.run(["docker", "image", "rm", *TABLE["images"]], check=False)


async def make_again(here: Docker, there: Docker, found: Container) -> tuple[Container, spec.Spec]:
    """What a target does with an Offer, but for the content."""
    image = await here.image(found.image_id)
    assert image is not None
    if await there.image(found.image) is None:
        await there.load_image(here.save_image(found.image))
    result = await spec.describe(here, found, image, {})
    for network in result.networks:
        if await there.network(network.name) is None:
            await there.create_network(network.create)
    for volume in result.volumes:
        if volume.kind == "volume" and not volume.anonymous and await there.volume(volume.name) is None:
            await there.create_volume(
                {"Name": volume.name, "Driver": volume.driver, "DriverOpts": volume.options, "Labels": volume.labels}
            )
    fitted = fitting.fit_engine(result.create, (await there.engine()).api)
    made = await there.create(found.name, fitted.create)
    await there.start(made)
    await there.set_restart_policy(made, found.restart_policy)
    return await there.inspect(made), result


@pytest.mark.parametrize(("source", "target"), [("d26", "d28"), ("d28", "d26"), ("d28", "store28")])
async def test_every_container_of_the_table_is_the_same_afterwards(lab: Lab, source: str, target: str) -> None:
    clear(lab[source])
    clear(lab[target])
    make(lab[source])
    different: dict[str, tuple[str, ...]] = {}
    try:
        async with door(lab[source]) as here, door(lab[target]) as there:
            for name in TABLE["containers"]:
                before = await here.inspect(name)
                after, result = await make_again(here, there, before)
                found = fields.differences(before.raw, after.raw)
                if found and name != "borrower":  # whose borrowed mounts are written out
                    different[name] = found
                for was in before.networks:
                    [now] = [one for one in after.networks if one.network == was.network]
                    if was.network != "bridge":
                        assert (now.addresses, now.mac) == (was.addresses, was.mac), name
                assert all(network.addresses == () for network in result.networks if network.name == "bridge")
    finally:
        clear(lab[source])
        clear(lab[target])
    assert different == {}


# The obstacles: what is said beforehand is what CRIU does then

PROGRAM = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
what, *more = sys.argv[1:]
if what == "inotify":
    fd = libc.inotify_init1(0)
    for path in more:
        assert libc.inotify_add_watch(fd, path.encode(), 0xfff) > 0
elif what == "io_uring":
    assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0
elif what == "userfaultfd":
    assert libc.syscall(323, 1) >= 0
elif what == "mptcp":
    kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
elif what == "open":
    kept = [open(path, "rb", buffering=0) for path in more]
elif what == "unix":
    kept = socket.socket(socket.AF_UNIX)
    kept.connect(more[0])
elif what == "all":
    a = socket.socketpair()
    b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    c = socket.create_server(("127.0.0.1", 8000))
    d = socket.create_connection(("127.0.0.1", 8000))
    e = c.accept()
    f = socket.socket(socket.AF_UNIX)
    f.bind("/tmp/sock et")
    f.listen()
    g = socket.socket(socket.AF_UNIX)
    g.connect("/tmp/sock et")
    h = f.accept()
    i = libc.eventfd(0, 0)
    j = libc.timerfd_create(0, 0)
    k = os.pipe()
    l = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    m = os.memfd_create("m")
    if os.fork() == 0:
        os.setsid()
print("ready", flush=True)
while True:
    time.sleep(9)
"""
LOOK = """
import asyncio, json, sys
from agent.base.shell import Shell
from agent.doors.docker import Docker
from agent.migration.obstacles import obstacles, warnings
from agent.migration.view import look

async def main():
    async with Docker("unix:///run/docker.sock", 20) as docker:
        found = await docker.inspect(sys.argv[1])
        view = await look(Shell(), found.pid)
        reasons = obstacles(found, view, await docker.running_execs(found))
        said = [reason.message for reason in reasons]
        print(json.dumps({"reasons": said, "watched": view.watched, "tcp": len(view.tcp), "n": len(view.processes)}))

asyncio.run(main())
"""
UNCONFINED = ("--security-opt", "seccomp=unconfined")
CASES = [
    (("all",), (), ""),
    (("inotify", "/tmp", "/", "/usr/bin/python3", "/dev/shm"), (), ""),
    (("inotify", "/data"), ("--volume", "/data"), ""),
    (("open", "/dev/net/tun", "/dev/zero"), ("--device", "/dev/net/tun"), ""),
    (("nothing",), ("--device", "/dev/fuse", "--volume", "/run/docker.sock:/d.sock", "--init"), ""),
    (("open", "/dev/fuse"), ("--device", "/dev/fuse"), "python3 has open /dev/fuse, which CRIU can't carry"),
    (("io_uring",), UNCONFINED, "python3 has open io_uring, which CRIU can't carry"),
    (("userfaultfd",), UNCONFINED, "python3 has open userfaultfd, which CRIU can't carry"),
    (("mptcp",), (), "python3 has open a socket of MPTCP, which CRIU can't carry"),
    (("unix", "/d.sock"), ("--volume", "/run/docker.sock:/d.sock"), "with a process outside"),
]


@pytest.mark.parametrize("where", ["d28", "cgroup2"])
@pytest.mark.parametrize(("words", "options", "said"), CASES, ids=lambda value: "-".join(value)[:30] or "fine")
def test_what_is_said_beforehand_is_what_criu_does(
    lab: Lab, where: str, words: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    host = lab[where]
    host.node.write("/root/program.py", PROGRAM, 0o644)
    command = ("python3", "/program.py", *words)
    try:
        mount = ("--volume", "/root/program.py:/program.py:ro")
        host.docker("run", "--detach", "--name", "case", *mount, *options, "py", *command)
        shell.wait_until("the program is ready", lambda: "ready" in host.docker("logs", "case"), timeout=10)
        found = json.loads(host.run(["/opt/transship/bin/python", "-c", LOOK, "case"]).stdout)
        assert len(found["reasons"]) == bool(said)
        assert said in "".join(found["reasons"])
        if words == ("all",):
            assert (found["tcp"], found["n"]) == (2, 2)
        assert can_dump(host, found["watched"]) == (not said)
    finally:
        host.docker("rm", "--force", "--volumes", "case", check=False)


def can_dump(host: Host, watched: list[str]) -> bool:
    """Whether CRIU dumps the container `case`, told where its watches are."""
    container = host.docker("inspect", "--format", "{{.Id}}", "case")
    host.run(["rm", "-rf", "/run/case"])
    host.run(["mkdir", "-p", "/run/case", "/etc/criu"])
    host.node.write("/etc/criu/runc.conf", "".join(f"irmap-scan-path {path}\n" for path in watched), 0o644)
    folders = ["--image-path", "/run/case", "--work-path", "/run/case"]
    runc = ["runc", "--root", host.runtime_root, "checkpoint", "--leave-running", "--tcp-established", *folders]
    done = host.run([*runc, container], check=False)
    host.run(["rm", "-f", "/etc/criu/runc.conf"])
    return done.returncode == 0
