"""The obstacles against real engines: what is said beforehand is what CRIU does then."""

import json

import pytest

from lab import Host, Lab, shell

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
