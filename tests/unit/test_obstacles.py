"""What stands against a move, one thing at a time: each is named, and nothing else is."""

from dataclasses import replace
from typing import Any

import pytest

from agent.doors.docker_model import Container, Exec, Summary
from agent.migration import view as views
from agent.migration.obstacles import (
    belongings_against,
    bound_against,
    marks_against,
    obstacles,
    shared_volumes,
    warnings,
)
from agent.migration.view import OpenFile, Process, UnixSocket, View
from agent.network.sockets import Bound
from protocol.errors import ErrorCode
from protocol.peer import Network, Volume
from tests.unit import recorded

SPACES = {name: f"{name}:[1]" for name in views.NAMESPACES}


def container(name: str = "plain", **changes: Any) -> Container:
    return recorded.container("docker28", name, **changes)


def process(pid: int = 100, **changes: Any) -> Process:
    first = Process(pid, pid - 99, "app", "S", 1 if pid == 100 else 100, 0, SPACES, ())
    return replace(first, **changes)


def look(*processes: Process, **changes: Any) -> View:
    return View(init=100, processes=processes or (process(),), **changes)


def files(*opened: OpenFile) -> View:
    return look(process(files=opened))


def messages(found: Container, view: View | None = None, execs: tuple[Exec, ...] = ()) -> list[str]:
    return [reason.message for reason in obstacles(found, view or look(), execs)]


@pytest.mark.parametrize("name", sorted(recorded.SAID["docker28"]["containers"]))
def test_nothing_stands_against_an_ordinary_container(name: str) -> None:
    assert messages(container(name)) == []


BY_DOCKER = [
    ({"State__Paused": True, "State__Status": "paused"}, "it is paused"),
    ({"State__Running": False, "State__Status": "exited"}, "it is exited"),
    ({"State__Status": "restarting", "State__Restarting": True}, "it is restarting"),
    ({"Config__Tty": True}, "it has a terminal"),
    ({"HostConfig__NetworkMode": "container:0123456789abcdef"}, "network namespace of container 0123456789ab,"),
    ({"HostConfig__PidMode": "host"}, "it shares the process namespace of the host"),
    ({"HostConfig__PidMode": "container:other"}, "it shares the process namespace of container other"),
    ({"HostConfig__IpcMode": "host"}, "it shares the IPC namespace of the host"),
    ({"HostConfig__IpcMode": "shareable"}, "its /dev/shm is a mount on this host"),
    ({"HostConfig__UTSMode": "host"}, "it shares the UTS namespace of the host"),
    ({"HostConfig__UsernsMode": "host"}, "exempt from user namespace remapping"),
    ({"HostConfig__Privileged": True}, "it is privileged"),
    ({"HostConfig__DeviceRequests": [{"Driver": "nvidia", "Count": -1}]}, "it uses a GPU"),
    ({"HostConfig__Devices": [{"PathOnHost": "/dev/dri/card0"}]}, "it uses the device /dev/dri/card0"),
    ({"HostConfig__Runtime": "runsc"}, "it is run by runsc"),
    ({"HostConfig__Links": ["/db:/web/db"]}, "it has legacy links"),
    ({"HostConfig__LogConfig": {"Type": "acme/logs:1"}}, "its log driver acme/logs:1 is a plugin"),
    ({"Config__Labels": {"com.docker.swarm.task.id": "x"}}, "it belongs to Swarm"),
    ({"Config__Labels": {"io.kubernetes.pod.uid": "x"}}, "it belongs to Kubernetes"),
    ({"Mounts": [{"Type": "image", "Destination": "/i"}]}, "its mount /i is of the kind image"),
]


@pytest.mark.parametrize(("changes", "said"), BY_DOCKER)
def test_what_docker_shows(changes: dict[str, Any], said: str) -> None:
    [message] = messages(container(**changes))
    assert said in message


@pytest.mark.parametrize("state", ["paused", "exited", "created", "dead"])
def test_what_does_not_run_has_a_code_of_its_own(state: str) -> None:
    found = container(State__Status=state, State__Running=state == "paused", State__Paused=state == "paused")
    [reason] = obstacles(found, look())
    assert reason.code is ErrorCode.NOT_RUNNING
    assert reason.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"HostConfig__AutoRemove": True},
        {"HostConfig__Runtime": "transship"},
        {"HostConfig__IpcMode": "private"},
        {"HostConfig__Devices": [{"PathOnHost": "/dev/net/tun"}]},
        {"HostConfig__LogConfig": {"Type": "journald"}},
        {"HostConfig__LogConfig": {"Type": "local"}},
    ],
)
def test_what_is_no_obstacle(changes: dict[str, Any]) -> None:
    assert messages(container(**changes)) == []


def test_all_reasons_are_said_at_once() -> None:
    found = container(Config__Tty=True, HostConfig__Privileged=True, HostConfig__PidMode="host")
    assert len(messages(found, files(OpenFile(3, "anon", "io_uring")))) == 4


# Execs


def test_a_running_exec_is_named() -> None:
    [reason] = obstacles(container(), look(), (Exec("e", True, 200, "sh -i"),))
    assert reason.message == "`sh -i` was started in it by docker exec and still runs"
    assert reason.code is ErrorCode.BUSY


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["CMD-SHELL", "curl localhost"], "/bin/sh -c curl localhost"),
        (["CMD", "/probe", "--fast"], "/probe --fast"),
    ],
)
def test_a_probe_of_its_health_is_none(test: list[str], command: str) -> None:
    found = container("checked", Config__Healthcheck={"Test": test})
    probing = look(process(), process(200, parent=1))
    assert messages(found, probing, (Exec("e", True, 200, command),)) == []
    assert len(messages(found, probing, (Exec("e", True, 200, "bash"),))) == 1


def test_a_process_from_outside_is_named_once() -> None:
    entered = look(process(), process(101), process(200, parent=1, name="gdbserver"))
    [message] = messages(container(), entered)
    assert message == "gdbserver (pid 101 in it) was put into it from outside"
    assert messages(container(), entered, (Exec("e", True, 200, "gdbserver"),)) == [
        "`gdbserver` was started in it by docker exec and still runs"
    ]


# Tasks and what they hold open


def test_a_traced_process_is_named() -> None:
    [reason] = obstacles(container(), look(process(), process(101, tracer=4711)))
    assert reason.message == "app (pid 2 in it) is being traced"
    assert reason.code is ErrorCode.BUSY


@pytest.mark.parametrize("state", ["R", "S", "D", "T", "Z", "I"])
def test_states_of_tasks_are_no_obstacle(state: str) -> None:
    assert messages(container(), look(process(), process(101, state=state))) == []


def test_a_stopped_task_is_an_obstacle_to_cgroup_v1_alone() -> None:
    stopped = look(process(), process(101, state="T"), cgroup_version=1)
    assert messages(container(), stopped) == ["app (pid 2 in it) is stopped, and can't be dumped with cgroup v1"]


def test_what_criu_would_leave_behind_without_a_word_is_named() -> None:
    left = look(groups=("224.0.0.251", "ff02::fb"), queues=("jobs",))
    assert messages(container(), left) == [
        "it has joined the multicast group 224.0.0.251, and CRIU does not carry memberships",
        "it has joined the multicast group ff02::fb, and CRIU does not carry memberships",
        "it has the POSIX message queue /jobs, which CRIU can't carry",
    ]


@pytest.mark.parametrize(
    ("given", "own", "warned"),
    [("", 8, False), ("", 2, True), ("0-3", 4, False), ("0,2", 1, True), ("0-1,6", 3, False), ("", 0, False)],
)
def test_a_choice_of_processors_is_warned_of(given: str, own: int, warned: bool) -> None:
    found = container(HostConfig__CpusetCpus=given)
    said = warnings(found, look(process(processors=own), processors=8))
    assert said == (("app has chosen its processors (sched_setaffinity), and will run on any",) if warned else ())


def test_what_could_not_be_bound_again_is_named() -> None:
    bound = Bound(frozenset({"172.17.0.2"}), frozenset({"eth0"}))
    address, interface = bound_against(bound, (), address_moves_along=False)
    assert address.message == "a socket of it is bound to 172.17.0.2, an address that does not move along"
    assert interface.message.startswith("a socket of it is bound to the interface eth0")
    assert bound_against(bound, (), address_moves_along=True) == (interface,)
    assert bound_against(bound, ("172.17.0.2",), address_moves_along=False) == (interface,)
    sending = Bound(frozenset(), frozenset(), frozenset({"172.17.0.2"}))
    assert bound_against(sending, ("172.17.0.2",), address_moves_along=False) == (address,), "it has no route yet"


def test_an_exec_in_a_moved_container_has_another_time() -> None:
    """CRIU has made a time namespace for what it restored; a probe is not in it."""
    found = container("checked", Config__Healthcheck={"Test": ["CMD", "/probe"]})
    probe = process(200, parent=1, namespaces={**SPACES, "time": "time:[2]"})
    assert messages(found, look(process(), probe), (Exec("e", True, 200, "/probe"),)) == []
    assert len(messages(container(), look(process(), process(101, namespaces={**SPACES, "time": "time:[2]"})))) == 1


def test_a_nested_namespace_is_named() -> None:
    nested = process(101, namespaces={**SPACES, "user": "user:[2]", "pid": "pid:[2]"})
    assert messages(container(), look(process(), nested)) == [
        "app (pid 2 in it) has a pid namespace of its own, and CRIU carries one for all",
        "app (pid 2 in it) has a user namespace of its own, and CRIU carries one for all",
    ]


@pytest.mark.parametrize(
    "opened",
    [
        OpenFile(3, "anon", "eventpoll"),
        OpenFile(3, "anon", "inotify"),
        OpenFile(3, "anon", "pidfd"),
        OpenFile(3, "socket", "TCP", inode=1),
        OpenFile(3, "socket", "UNIX-STREAM", inode=1),
        OpenFile(3, "socket", "NETLINK", inode=1),
        OpenFile(3, "socket", "PING", inode=1),
        OpenFile(3, "char", "/dev/null", (1, 3)),
        OpenFile(3, "char", "/dev/pts/0", (136, 0)),
        OpenFile(3, "char", "/dev/ptmx", (5, 2)),
        OpenFile(3, "char", "/dev/net/tun", (10, 200)),
        OpenFile(3, "marks", "/proc/1/clear_refs"),
    ],
)
def test_what_criu_carries(opened: OpenFile) -> None:
    assert messages(container(), files(opened)) == []


@pytest.mark.parametrize(
    ("opened", "said", "hint"),
    [
        (OpenFile(3, "anon", "io_uring"), "app has open io_uring, which CRIU can't carry", "UV_USE_IO_URING=0"),
        (OpenFile(3, "anon", "userfaultfd"), "app has open userfaultfd", ""),
        (OpenFile(3, "anon", "bpf-prog"), "app has open bpf-prog", ""),
        (OpenFile(-1, "anon", "perf_event"), "app maps perf_event", ""),
        (OpenFile(3, "socket", "MPTCP", inode=1), "app has open a socket of MPTCP", "multipathtcp=0"),
        (OpenFile(3, "socket", "SCTP", inode=1), "app has open a socket of SCTP", ""),
        (OpenFile(3, "socket", "AF_VSOCK", inode=1), "app has open a socket of AF_VSOCK", ""),
        (OpenFile(3, "char", "/dev/fuse", (10, 229)), "app has open /dev/fuse", ""),
        (OpenFile(-1, "char", "/dev/nvidia0"), "app maps /dev/nvidia0", ""),
        (OpenFile(3, "block", "/dev/sda", (8, 0)), "app has open /dev/sda", ""),
        (OpenFile(3, "other", "dmabuf:"), "app has open dmabuf:", ""),
        (OpenFile(3, "anon", "eventfd in semaphore mode"), "app has open eventfd in semaphore mode", "plain counter"),
        (OpenFile(3, "renamed", "/a"), "app has open /a, a name that is gone while the file has another one", ""),
    ],
)
def test_what_criu_can_not_carry(opened: OpenFile, said: str, hint: str) -> None:
    [reason] = obstacles(container(), files(opened, opened))
    assert said in reason.message
    assert hint in reason.hint


def test_who_looks_itself_at_what_it_has_written_does_not_go_by_pre_copy() -> None:
    [reason] = marks_against(
        files(OpenFile(3, "marks", "/proc/1/clear_refs"), OpenFile(4, "marks", "/proc/1/clear_refs"))
    )
    assert "app looks itself at what it has written" in reason.message
    assert "--strategy cold" in reason.hint
    assert list(marks_against(files(OpenFile(3, "anon", "eventpoll")))) == []


def test_watches_with_a_path_are_no_obstacle_and_those_without_are() -> None:
    assert messages(container(), look(watched=("/tmp",))) == []
    assert messages(container(), look(lost_watches=2)) == [
        "2 of its inotify watches are on files that have no path any more"
    ]


# UNIX sockets: rows of `ss` as recorded from a container that has all kinds of them

ROWS = """\
u_dgr ESTAB  0      0                         * 110841 * 110840
u_str ESTAB  0      0      /var/run/docker.sock 110103 * 110829
u_seq ESTAB  0      0                         * 110835 * 110834
u_str LISTEN 1      128           /tmp/my 5 sock 110836 * 0
u_seq ESTAB  0      0                         * 110834 * 110835
u_str ESTAB  0      0                         * 110829 * 110103
u_str ESTAB  0      0                         * 110839 * 0
u_str ESTAB  0      0            /tmp/my 5 sock 110838 * 110837
u_str ESTAB  0      0                         * 110837 * 110838
u_dgr ESTAB  0      0                      @abs 110840 * 0
"""


def held(*inodes: int) -> View:
    opened = tuple(OpenFile(3 + place, "socket", "UNIX-STREAM", inode=inode) for place, inode in enumerate(inodes))
    return look(process(files=opened), unix=views.parse_unix(ROWS))


def test_rows_of_ss_are_read() -> None:
    rows = views.parse_unix(ROWS)
    assert len(rows) == 10
    assert rows[1] == UnixSocket("str", "/var/run/docker.sock", 110103, 110829)
    assert rows[3] == UnixSocket("str", "/tmp/my 5 sock", 110836, 0)
    assert views.parse_unix("Netid State\nnonsense\n") == ()


def test_connections_within_the_container_are_no_obstacle() -> None:
    assert messages(container(), held(110834, 110835, 110836, 110837, 110838, 110839, 110840, 110841)) == []


def test_a_connection_that_leaves_the_container_is_named() -> None:
    [message] = messages(container(), held(110829))
    assert message == "app has a UNIX socket connection to /var/run/docker.sock with a process outside"
    [message] = messages(container(), held(110834))
    assert message == "app has a UNIX socket connection without a name with a process outside"


# Networks and volumes


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Network(name="n", driver="overlay"), "its network n is of the driver overlay"),
        (Network(name="n", driver=""), "its network n is gone"),
    ],
)
def test_networks_that_can_not_be_had_on_a_target(network: Network, said: str) -> None:
    [reason] = belongings_against([network], [])
    assert said in reason.message


def test_ordinary_belongings_are_no_obstacle() -> None:
    networks = [Network(name="n", driver=driver) for driver in ("bridge", "macvlan", "ipvlan", "host", "null")]
    shared = {"type": "nfs", "device": ":/export", "o": "addr=10.0.0.1"}
    volumes = [
        Volume(kind="volume", name="v", destination="/v"),
        Volume(kind="volume", name="s", destination="/s", options=shared),
        Volume(kind="volume", name="g", destination="/g", driver="netapp", options={"device": "/x"}, shared=True),
        Volume(kind="bind", name="/etc", destination="/e"),
    ]
    assert belongings_against(networks, volumes) == ()


@pytest.mark.parametrize(
    "options", [{"type": "none", "o": "bind", "device": "/srv"}, {"type": "tmpfs", "device": "tmpfs"}]
)
def test_a_volume_that_is_a_mount_of_this_host_is_named(options: dict[str, str]) -> None:
    volume = Volume(kind="volume", name="v", destination="/v", options=options)
    [reason] = belongings_against([], [volume])
    assert reason.message.startswith(f"its volume v is a mount of {options['device']} on this host")


@pytest.mark.parametrize("said", [{}, {"shared": True, "anonymous": True}])
def test_a_volume_of_a_plugin_is_named_unless_every_host_has_it(said: dict[str, bool]) -> None:
    volume = Volume(kind="volume", name="v", destination="/v", driver="netapp", **said)  # type: ignore[arg-type]
    [reason] = belongings_against([], [volume])
    assert reason.message == "its volume v is of the driver netapp, which has it on this host alone"


def other(name: str, *volumes: tuple[str, bool]) -> Summary:
    return Summary(id=name, name=name, image="", state="running", health="", labels={}, volumes=volumes)


@pytest.mark.parametrize(
    ("ours", "theirs", "against"), [(True, True, 1), (True, False, 1), (False, True, 1), (False, False, 0)]
)
def test_a_volume_that_two_use_is_no_one_s_to_take(ours: bool, theirs: bool, against: int) -> None:
    mount = {"Type": "volume", "Name": "v", "Source": "/v", "Destination": "/d", "RW": ours}
    found = container(Mounts=[mount])
    reasons = shared_volumes(
        found, ["v"], [other("friend", ("v", theirs), ("w", True)), other("stranger", ("w", True))]
    )
    assert len(reasons) == against
    assert all("its volume v is also used by friend" in reason.message for reason in reasons)
    assert shared_volumes(found, [], [other("friend", ("v", True))]) == (), "on shared storage it is one volume"


# Warnings


def test_warnings() -> None:
    found = container(HostConfig__LogConfig={"Type": "journald"}, HostConfig__AutoRemove=True)
    said = warnings(found, look(process(), process(101, state="D")))
    assert len(said) == 3
    assert said[0] == "its log lines so far stay where the driver journald sent them from here"
    assert warnings(container(), look()) == ()
