"""Volumes on shared storage are mounted on the target, never copied, and never removed by a move."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.host import Host
from lab.shell import end
from protocol.commands import ReplyKind
from protocol.errors import Consequence, ErrorCode
from tests.e2e.fidelity import inspect, move, remove, stays
from tests.e2e.support import clean, until

NAME = "sharer"
PLUGIN = Path(__file__).with_name("volume_plugin.py").read_text()
PLUGINS = {
    "shelf": {"a26": "global", "b28": "global"},
    "broken": {"a26": "global", "b28": "global broken"},
    "attic": {"a26": "global"},
    "drawer": {"a26": "local"},
}
"""By driver and host, the scope."""
PLACE = "/srv/shared"
WRITE = "n=0; while :; do n=$((n + 1)); echo $n >>/lib/log; sleep 0.02; done"
OPEN_TREE, MOVE_MOUNT, AT_FDCWD = 428, 429, -100
# A mount that was cloned outside is attached within: no path leads from one machine into another.
ATTACH = (
    f"import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall({MOVE_MOUNT}, int(sys.argv[1]), b'', -100, b'{PLACE}', 4))"
)


@pytest.fixture(scope="module")
def folder(pair: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the hosts share: a folder of each driver. Docker asks those that it has met for any volume: they stay."""
    folder = tmp_path_factory.mktemp("shared")
    hosts = [pair["a26"], pair["b28"]]
    for host in hosts:
        attach(host, folder)
        host.ensure_image("busybox")
    running = []
    for driver, scopes in PLUGINS.items():
        (folder / driver).mkdir()
        for name, scope in scopes.items():
            running.append(pair[name].popen(["python3", "-c", PLUGIN, driver, f"{PLACE}/{driver}", *scope.split()]))
    yield folder
    for host in hosts:
        host.docker("volume", "rm", "--force", *(volume(driver) for driver in PLUGINS), check=False)
    for plugin in running:
        end(plugin)
    for host in hosts:
        host.run(["sh", "-c", f"rm -rf /run/docker/plugins; umount {PLACE}"])
        host.restart_dockerd()


def attach(host: Host, folder: Path) -> None:
    host.run(["mkdir", "-p", PLACE])
    tree = ctypes.CDLL(None).syscall(OPEN_TREE, AT_FDCWD, str(folder).encode(), 1)
    assert tree >= 0
    try:
        assert host.popen(["python3", "-c", ATTACH, str(tree)], pass_fds=[tree]).wait(10) == 0
    finally:
        os.close(tree)


def volume(driver: str) -> str:
    return f"in-{driver}"


def start(host: Host, driver: str) -> None:
    host.docker("volume", "create", "--driver", driver, "--opt=size=1", volume(driver))
    host.docker("run", "-d", "--name", NAME, f"--volume={volume(driver)}:/lib", "busybox", "sh", "-c", WRITE)


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("b28", "a26")], ids=["26-28", "28-26"])
async def test_a_volume_that_every_host_has_is_mounted_there(
    pair: Cluster, folder: Path, source: str, target: str
) -> None:
    here, there = pair[source], pair[target]
    try:
        start(here, "shelf")
        log = folder / "shelf" / "in-shelf" / "log"
        await until(lambda: log.exists() and log.stat().st_size > 100, "it writes")
        reply = await move(pair, NAME, source, target)
        assert reply.report is not None
        assert not [part for part in reply.report.parts if part.name.startswith("volume")], "nothing is copied"
        [mount] = inspect(there, NAME)["Mounts"]
        assert (mount["Name"], mount["Driver"], mount["Source"]) == ("in-shelf", "shelf", f"{PLACE}/shelf/in-shelf")
        so_far = log.stat().st_size
        await until(lambda: log.stat().st_size > so_far + 100, "it writes on")
        numbers = [int(line) for line in log.read_text().splitlines()[:-1]]
        assert numbers == list(range(1, len(numbers) + 1))
        await clean(pair, source, target)
    finally:
        remove(pair, NAME)
        log.unlink(missing_ok=True)


async def test_storage_that_others_use_is_not_removed_where_a_move_is_taken_back(pair: Cluster, folder: Path) -> None:
    try:
        start(pair["a26"], "broken")
        log = folder / "broken" / "in-broken" / "log"
        await until(lambda: log.exists(), "it writes")
        reply = await pair.migrate(NAME, "a26", "b28")
        assert reply.kind is ReplyKind.FAILED
        assert reply.error is not None
        assert reply.error.consequence is Consequence.TAKEN_BACK, reply.error
        assert "it is out of order" in reply.error.message, reply.error
        so_far = log.stat().st_size
        await until(lambda: log.stat().st_size > so_far, "it writes on")
        await clean(pair, "a26", "b28")
    finally:
        remove(pair, NAME)


@pytest.mark.parametrize(
    ("driver", "code", "said"),
    [
        ("attic", ErrorCode.VOLUME_CONFLICT, "there is no volume driver attic for in-attic"),
        ("drawer", ErrorCode.NOT_MIGRATABLE, "its volume in-drawer is of the driver drawer, which has it on this host"),
    ],
)
async def test_a_volume_that_only_one_host_has_stays(
    pair: Cluster, folder: Path, driver: str, code: ErrorCode, said: str
) -> None:
    try:
        start(pair["a26"], driver)
        await stays(pair, NAME, "a26", "b28", code, said)
    finally:
        remove(pair, NAME)
