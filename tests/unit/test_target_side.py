"""What a target looks at before it writes or kills: bind mounts, pins, cgroups, the list of tasks in a dump."""

import os
import struct
from pathlib import Path

import pytest

from agent.base.errors import ContainerGone, CorruptPart
from agent.base.protobuf import packed
from agent.checkpoint import criu, freezer, proc
from agent.checkpoint.freezer import Cgroup
from agent.checkpoint.proc import Task
from agent.migration import belongings, pins
from agent.prework import init
from agent.runtime import restore
from protocol.peer import Volume

# Bind mounts


def bind(path: Path, *, copyable: bool = True) -> Volume:
    return Volume(kind="bind", name=str(path), destination="/x", copyable=copyable)


def test_a_path_must_be_there_or_be_allowed(tmp_path: Path) -> None:
    allowed = [tmp_path / "allowed"]
    allowed[0].mkdir()
    (tmp_path / "there").mkdir()
    assert belongings.bind_here(allowed, bind(tmp_path / "there")) == (False, "", "")
    wanted, message, hint = belongings.bind_here(allowed, bind(tmp_path / "missing"))
    assert (wanted, bool(hint)) == (False, True)
    assert "missing is not there" in message
    assert belongings.bind_here(allowed, bind(allowed[0] / "a/b")) == (True, "", "")
    assert "is not there" in belongings.bind_here(allowed, bind(allowed[0] / "file", copyable=False))[1]
    assert "is not there" in belongings.bind_here([], bind(allowed[0] / "a/b"))[1]


def test_content_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "file").touch()
    assert belongings.bind_here([tmp_path], bind(tmp_path / "empty"))[0]
    for name in ("full", "file"):
        wanted, message, hint = belongings.bind_here([tmp_path], bind(tmp_path / name))
        assert not wanted
        assert "has content, and it would be overwritten" in message
        assert hint


def test_no_way_leads_out_of_the_allowed_folder(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    assert belongings.may_write([allowed], allowed / "a")
    assert not belongings.may_write([allowed], allowed), "the folder itself is not to be filled by one container"
    assert not belongings.may_write([allowed], allowed / "link/a")
    assert not belongings.may_write([allowed], allowed / "../outside")
    assert not belongings.may_write([allowed], tmp_path / "allowed-too")


# Pins


def test_pins_are_kept_for_as_long_as_the_container_is_known(tmp_path: Path) -> None:
    assert pins.recall(tmp_path, "a") == {}
    pins.remember(tmp_path, "a", {"net": ("IPv4Address",)}, ["a"])
    pins.remember(tmp_path, "b", {}, ["a", "b"])
    assert pins.recall(tmp_path, "a") == {"net": ["IPv4Address"]}
    assert pins.recall(tmp_path, "b") == {}
    pins.remember(tmp_path, "c", {"net": ()}, ["c"])
    assert pins.recall(tmp_path, "a") == {}


# Tasks


@pytest.mark.parametrize(
    ("lines", "killed"),
    [
        ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", True),
        ("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", True),
        ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigCgt:\t0000000000000100\n", False),
    ],
    ids=["of all", "of the thread", "TERM"],
)
def test_what_was_killed_while_it_was_frozen_is_as_good_as_dead(lines: str, killed: bool) -> None:
    assert proc._is_killed(lines) is killed


def task(pid: int, parent: int) -> Task:
    return Task(pid=pid, inner_pid=pid, state="S", tracer=0, resident_bytes=0, parent=parent)


def test_what_was_put_in_from_outside_is_not_its_own() -> None:
    found = [task(100, 1), task(101, 100), task(102, 101), task(200, 1), task(201, 200)]
    assert [one.pid for one in proc.own(found, 100)] == [100, 101, 102]


def test_a_process_in_no_cgroup_of_its_own_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows a zombie in the root cgroup; who killed all in there would kill the host."""
    said = {"v1": "6:freezer:/\n0::/\n", "v2": "0::/\n", "container": "0::/docker/abc\n"}
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    for kind, text in said.items():
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        if kind == "container":
            assert freezer.cgroup_of(1) == Cgroup(freezer.CGROUP_ROOT / "docker/abc", 2)
        else:
            with pytest.raises(ContainerGone, match="in no cgroup of a container"):
                freezer.cgroup_of(1)


async def test_nobody_kills_the_cgroup_that_he_is_in(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(ContainerGone, match="is not a container's"):
        await freezer.kill_frozen(Cgroup(tmp_path, 2))


@pytest.mark.parametrize("magic", [struct.pack("<II", criu.COMMON_MAGIC, 0x50273030), struct.pack("<I", 0x50273030)])
def test_a_dump_says_how_many_living_tasks_it_has(tmp_path: Path, magic: bytes) -> None:
    """A zombie is in no cgroup, so it is not looked for after the restore."""

    def write(name: str, *entries: bytes) -> None:
        (tmp_path / name).write_bytes(magic + b"".join(struct.pack("<I", len(one)) + one for one in entries))

    states = {1: 1, 300: 2, 7: 6, 9: 3}  # alive, dead, dead with a name of its own, stopped
    write("pstree.img", *(packed(1, pid) + packed(2, 0) + packed(5, pid) for pid in states))
    for pid, state in states.items():
        write(f"core-{pid}.img", packed(1, 1) + packed(3, packed(1, state) + packed(2, 0)))
    assert criu.tasks_in(tmp_path) == 2


# The bundle


def test_settings_of_the_network_are_set_by_the_hooks() -> None:
    sysctls = {"net.ipv4.ping_group_range": "0 1'2", "net.ipv4.conf.eth0.forwarding": "1", "kernel.msgmax": "1"}
    first = restore.settings(sysctls, of_interfaces=False)
    assert first == "printf %s '0 1'\\''2' >'/proc/sys/net/ipv4/ping_group_range'\n"
    assert restore.settings(sysctls, of_interfaces=True) == "printf %s '1' >'/proc/sys/net/ipv4/conf/eth0/forwarding'\n"
    assert restore.settings({}, of_interfaces=False) == ""


def test_hooks_of_ours_are_around_those_of_dockerd(tmp_path: Path) -> None:
    sysctls = {"net.ipv4.conf.eth0.forwarding": "1"}
    config = {"hooks": {"prestart": [{"path": "dockerd"}]}, "linux": {"sysctl": sysctls}}
    restore.amend_bundle(config, str(tmp_path))
    hooks = config["hooks"]["prestart"]  # type: ignore[index]
    assert [hook.get("args", ["", "dockerd"])[1] for hook in hooks] == [
        f"{tmp_path}/first",
        "dockerd",
        f"{tmp_path}/last",
    ]
    assert (tmp_path / "sysctls").read_text() == ""
    assert "forwarding" in (tmp_path / "last").read_text()


def test_bind_mounts_name_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    mounts = [
        {"destination": "/a", "type": "bind", "source": str(tmp_path / "link")},
        {"destination": "/sbin/docker-init", "source": "/usr/bin/docker-init", "options": ["bind", "ro"]},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ]
    restore.mount_from({"mounts": mounts}, {"/sbin/docker-init": "/kept/init"})
    assert [mount["source"] for mount in mounts] == [str(tmp_path / "file"), "/kept/init", "proc"]


# The program of --init


async def test_the_program_of_init_is_kept_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "STORE", tmp_path / "init")

    async def chunks(*parts: bytes):  # type: ignore[no-untyped-def]
        for part in parts:
            yield part

    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    await init.keep(digest, chunks(b"a", b"bc"))
    assert init.kept(digest).read_bytes() == b"abc"
    assert init.kept(digest).stat().st_mode & 0o777 == 0o755
    with pytest.raises(CorruptPart):
        await init.keep("0" * 64, chunks(b"abc"))
    assert [path.name for path in (tmp_path / "init").iterdir()] == [digest]
    assert init.digest_of(os.getpid()) == "", "this is no docker-init"
