"""What CRIU is told of a container without runc: its mounts as the kernel shows them, and the commands made of them."""

import shlex

import pytest

from agent.base.errors import Refused
from agent.base.shell import printable
from agent.checkpoint import external
from agent.checkpoint.external import Address, Tree, host_path, mounts_of, root_mount

MOUNTINFO = """\
143 78 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/o/diff,workdir=/o/work,xino=off
146 143 0:67 / /proc rw,nosuid - proc proc rw
150 143 0:89 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
153 152 0:98 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
155 153 0:36 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
186 143 254:0 /vm/volumes/v/_data /data rw,relatime master:46 - ext4 /dev/vda rw
187 143 254:0 /vm/containers/abc/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
188 143 254:0 /elsewhere /unknown rw,relatime - ext4 /dev/vda rw
189 143 0:23 /socket /given rw - tmpfs tmpfs rw
84 146 0:89 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
"""
SOURCES = {"/data": "/var/lib/docker/volumes/v/_data", "/etc/hosts": "/var/lib/docker/c/hosts", "/given": "/run/socket"}

HERE = """\
20 1 0:20 / / rw - overlay overlay rw
21 20 254:0 / /mnt/disk rw - ext4 /dev/vda rw
22 20 254:0 /vm /var/lib/docker rw - ext4 /dev/vda rw
23 20 8:1 /data /srv rw - ext4 /dev/sda1 rw
"""


def test_a_place_of_a_file_system_is_where_the_host_has_mounted_it() -> None:
    assert host_path("254:0", "/vm/vfs/dir/x", HERE) == "/var/lib/docker/vfs/dir/x"
    assert host_path("254:0", "/vm", HERE) == "/var/lib/docker"
    assert host_path("254:0", "/vmlinuz", HERE) == "/mnt/disk/vmlinuz"
    assert host_path("8:1", "/other", HERE) == "", "a part that is not mounted"
    assert host_path("8:2", "/data", HERE) == ""


def test_what_comes_from_the_host_is_named_and_the_rest_is_criu_s() -> None:
    root, externals = mounts_of(MOUNTINFO, SOURCES, HERE)
    assert root == ("-t", "overlay", "-o", "lowerdir=/l/A:/l/B,upperdir=/o/diff,workdir=/o/work", "overlay")
    assert externals == {
        "/sys/fs/cgroup/pids": "/sys/fs/cgroup/pids/docker/abc",
        "/data": "/var/lib/docker/volumes/v/_data",
        "/etc/hosts": "/var/lib/docker/c/hosts",
        "/unknown": "/mnt/disk/elsewhere",
        "/given": "/run/socket",
    }


def test_other_storage_drivers_are_mounted_as_they_do() -> None:
    assert root_mount("btrfs", "/dev/sdb", "/subvolumes/x", "rw,subvolid=7", "") == (
        *("-t", "btrfs", "-o", "subvol=/subvolumes/x", "/dev/sdb"),
    )
    here = "/var/lib/docker/vfs/dir/x"
    assert root_mount("ext4", "/dev/vda", "/vm/vfs/dir/x", "rw", here) == ("--bind", here)
    with pytest.raises(Refused, match="squashfs"):
        root_mount("squashfs", "/dev/loop0", "/", "ro", "/")


def tree() -> Tree:
    root, externals = mounts_of(MOUNTINFO, SOURCES, HERE)
    address = Address("docker0", ("172.17.0.2/16", "fd00::2/64"), "02:42:ac:11:00:02", ("172.17.0.1",))
    return Tree("we b", "ab" * 32, 42, root, externals, {1: "pipe:[7]", 2: "pipe:[8]"}, (address,), "net[9]", "always")


def test_the_record_tells_a_restore_all_that_the_dump_knew() -> None:
    assert external.from_record(external.to_record(tree())) == tree()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"container": 1}'])
def test_a_record_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="not understood"):
        external.from_record(text)


def test_the_restart_policy_is_taken_away_only_from_one_that_ends() -> None:
    ends = [word for step in external.dump_steps(tree(), leave_running=False) for word in step.argv]
    goes_on = [word for step in external.dump_steps(tree(), leave_running=True) for word in step.argv]
    assert "--restart=no" in ends
    assert "--restart=no" not in goes_on
    assert "--leave-running" in goes_on


def test_the_name_and_the_mount_are_taken_down_when_the_tree_has_its_own() -> None:
    steps = [step.argv for step in external.restore_steps(tree())]
    made = [argv for argv in steps if argv[0] == "mount" or argv[:3] == ("ip", "netns", "add")]
    assert len(made) == 2
    assert [argv[:2] for argv in steps[-2:]] == [("umount", "--lazy"), ("ip", "netns")]


def test_what_is_printed_is_what_is_run() -> None:
    for step in [*external.dump_steps(tree(), leave_running=False), *external.restore_steps(tree())]:
        assert tuple(shlex.split(printable(step.argv))) == step.argv
