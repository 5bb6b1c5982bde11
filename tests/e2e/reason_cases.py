"""For each reason that the lab can show, a container that has it; the others: tests/unit/test_reasons.py. No tests."""

from dataclasses import dataclass
from typing import Final

from protocol.errors import Why

PROGRAM: Final = """
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
what = sys.argv[1]
if what == "traced":
    if os.fork() == 0:
        libc.ptrace(0, 0, 0, 0)
elif what == "io-uring":
    assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0
elif what == "open-file":
    kept = libc.eventfd(1, 1)
elif what == "renamed-file":
    kept = open("/tmp/one", "w")
    os.link("/tmp/one", "/tmp/other")
    os.unlink("/tmp/one")
elif what == "socket":
    kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
elif what == "inotify":
    kept = libc.inotify_init1(0)
    held = open("/tmp/gone", "w")
    assert libc.inotify_add_watch(kept, b"/tmp/gone", 0xfff) > 0
    os.unlink("/tmp/gone")
elif what == "unix-socket":
    kept = socket.socket(socket.AF_UNIX)
    kept.connect("/docker.sock")
elif what == "multicast":
    kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group = struct.pack("4s4s", socket.inet_aton("239.1.2.3"), socket.inet_aton("0.0.0.0"))
    kept.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
elif what == "message-queue":
    assert libc.mq_open(b"/jobs", os.O_CREAT | os.O_RDWR, 0o600, None) >= 0
elif what == "bound-address":
    kept = socket.create_server((socket.gethostbyname(socket.gethostname()), 8000))
elif what == "connections":
    server = socket.create_server(("127.0.0.1", 8000))
    kept = socket.create_connection(("127.0.0.1", 8000)), server.accept()
print("ready", flush=True)
time.sleep(1000)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """How to run it."""

    options: tuple[str, ...] = ()
    shell: str = ""
    """In busybox, instead of waiting."""
    program: bool = False
    """It is the part of PROGRAM that has the reason's name."""
    then: tuple[str, ...] = ()
    """Words to docker afterwards."""


def _options(words: str) -> Case:
    return Case(tuple(words.split()))


CASES: Final[dict[Why, Case]] = {
    Why.PAUSED: Case(then=("pause", "paused")),
    Why.TERMINAL: _options("--tty"),
    Why.HOST_NAMESPACE: _options("--pid host"),
    Why.SHARED_NAMESPACE: _options("--network container:reason-other"),
    Why.SHAREABLE_IPC: _options("--ipc shareable"),
    Why.PRIVILEGED: _options("--privileged"),
    Why.GPU: _options("--device /dev/dri/card9"),
    Why.DEVICE: _options("--device /dev/vfio/9"),
    Why.DEVICE_MISSING: _options("--device /dev/reason9"),
    Why.LEGACY_LINKS: _options("--link reason-other"),
    Why.MANAGED: _options("--label com.docker.swarm.task.id=x"),
    Why.EXEC_SESSION: Case(then=("exec", "--detach", "exec-session", "sleep", "1000")),
    Why.TRACED: Case(program=True),
    Why.STOPPED_PROCESS: Case(shell="sleep 1000 & kill -STOP $!; wait"),
    Why.NESTED_NAMESPACE: Case(("--cap-add", "SYS_ADMIN"), shell="unshare -u sleep 1000 & wait"),
    Why.IO_URING: Case(("--security-opt", "seccomp=unconfined"), program=True),
    Why.OPEN_FILE: Case(program=True),
    Why.RENAMED_FILE: Case(program=True),
    Why.SOCKET: Case(program=True),
    Why.INOTIFY: Case(program=True),
    Why.UNIX_SOCKET: Case(("--volume", "/run/docker.sock:/docker.sock"), program=True),
    Why.MULTICAST: Case(program=True),
    Why.MESSAGE_QUEUE: Case(program=True),
    Why.NETWORK_ADDITION: Case(("--cap-add", "NET_ADMIN"), shell="ip address add 10.99.0.1/32 dev lo; sleep 1000"),
    Why.BOUND_ADDRESS: Case(program=True),
    Why.CONNECTIONS: Case(("--label", "transship.tcp=refuse"), program=True),
    Why.SHARED_VOLUME: _options("--volume reason-shared:/data"),
    Why.VOLUME_OF_HOST: _options("--volume reason-of-host:/data"),
    Why.LSM: _options("--security-opt apparmor=shop"),
    Why.NAME_TAKEN: Case(),
    Why.ADDRESS_TAKEN: _options("--network reason-same --ip 10.98.0.9"),
    Why.ADDRESS_OUTSIDE: _options("--network reason-moved --ip 10.97.0.9"),
    Why.NETWORK_DIFFERS: _options("--network reason-overlaps --ip 10.96.0.9"),
    Why.PORT_TAKEN: _options("--publish 8097:80"),
    Why.VOLUME_CONFLICT: _options("--volume reason-both:/data"),
}
"""Asked of the other host of the pair; those whose name says so: of one that is another in just that."""
NOBODY: Final = "fine"
"""One that nothing is against."""
