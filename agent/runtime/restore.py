"""`create` for a container with images on their way: wait for them, then `runc restore` in place of `runc create`.

Started by launcher.sh while the container still runs at the source. By the time the agent says `restore`, everything
is loaded, the bundle is amended, and CRIU waits for its first image, which is a fifo: the blackout sees no start.

It does not wait for runc's end. CRIU holds the restored tasks (hold.sh), and runc goes on in the background until the
tasks run. Nor does it wait for the hold on Docker 28, which attaches the network only after `create`, and can do that
beside the restore: there it returns when the network namespace is there and locked. `start` does not wait either: the
agent does.
"""

import contextlib
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from agent.runtime import handover

# Flags that `runc create` has and `runc restore` has not; dropped with their meaning, which a restore doesn't need.
CREATE_ONLY_FLAGS = {"--no-new-keyring"}
CLEAR_SECONDS = 10.0
"""For runc to clear up what it had made, when CRIU ends before it has begun."""
SYSCTL = re.compile(r"[A-Za-z0-9_./:@-]+")
CREATE_ONLY_OPTIONS = {"--preserve-fds", "--pidfd-socket"}
NEXT_CALL_SECONDS = 2.0
"""For runc to end, or to call CRIU again, after an end of CRIU."""


def split_call(argv: list[str]) -> tuple[list[str], list[str], str]:
    """Runc's global flags, the flags of `create`, and the container id."""
    at = argv.index("create")
    flags: list[str] = []
    words = iter(argv[at + 1 : -1])
    for word in words:
        name = word.split("=", 1)[0]
        if name in CREATE_ONLY_FLAGS:
            continue
        if name in CREATE_ONLY_OPTIONS:
            if "=" not in word:
                next(words, None)
            continue
        flags.append(word)
    return argv[:at], flags, argv[-1]


def option(flags: list[str], name: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE`; empty if it is not there."""
    for at, word in enumerate(flags):
        if word == name and at + 1 < len(flags):
            return flags[at + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
    return ""


def settings(sysctls: dict, *, of_interfaces: bool) -> str:  # type: ignore[type-arg]
    """Shell commands for the settings of the network namespace, which CRIU makes empty and runc sets at `create` only.

    CRIU has those of the other namespaces in its images.

    Raises:
        ValueError: a name that no setting has; it would be run as shell.

    """
    lines = []
    for key, value in sysctls.items():
        if not SYSCTL.fullmatch(key):
            raise ValueError(f"no setting of a kernel: {key!r}")
        path = key.replace(".", "/")
        if key.startswith("net.") and ("/eth" in path) == of_interfaces:
            quoted = "'" + str(value).replace("'", "'\\''") + "'"
            lines.append(f"printf %s {quoted} >'/proc/sys/{path}'\n")
    return "".join(lines)


def amend_bundle(config: dict, folder: str) -> None:  # type: ignore[type-arg]
    """Point CRIU at the options of this restore, and put our hooks around any other."""
    # runc hands the file on to CRIU, whose options in it win over those that runc sets itself
    config.setdefault("annotations", {})["org.criu.config"] = f"{folder}/{handover.CRIU_CONF}"
    hooks = config.setdefault("hooks", {}).setdefault("prestart", [])
    # Docker 26 attaches the network in a prestart hook of its own; ours comes first, so the lock is there before it
    hooks.insert(0, hook(folder, handover.FIRST))
    sysctls = config.get("linux", {}).get("sysctl") or {}
    put(f"{folder}/{handover.SYSCTLS}", settings(sysctls, of_interfaces=False))
    if late := settings(sysctls, of_interfaces=True):
        put(f"{folder}/{handover.LAST}", late)
        hooks.append(hook(folder, handover.LAST))


def cgroup_of(path: str) -> str:
    """Where runc puts the container on cgroup v2: `cgroupsPath` itself, or SLICE:PREFIX:NAME with systemd."""
    if ":" not in path:
        return path
    unit, prefix, name = path.split(":")
    parts = (unit or "system.slice").removesuffix(".slice").split("-")
    slices = ["-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))]
    return "/" + "/".join([*slices, f"{prefix}-{name}.scope"])


def name_cgroup(config: dict, folder: str) -> None:  # type: ignore[type-arg]
    """Tell CRIU the container's cgroup on v2; else it makes the source's again, and the tasks run in that.

    runc does so itself on v1, and on v2 only from 1.2 on (libcontainer/criu_linux.go: criuApplyCgroups). It is named
    for v2's hierarchy alone: a host may have some of v1 beside it, which are nobody's business here.
    """
    path = config.get("linux", {}).get("cgroupsPath") or ""
    if not path.isprintable():
        raise ValueError(f"no cgroup: {path!r}")  # another line would be another option
    if path and os.path.exists("/sys/fs/cgroup/cgroup.controllers"):  # noqa: PTH110
        with open(f"{folder}/{handover.CRIU_CONF}", "a") as file:  # noqa: PTH123
            file.write(f"cgroup-root :{cgroup_of(path)}\n")  # the controller of v2 has no name


def mount_from(config: dict, sources: dict) -> None:  # type: ignore[type-arg]
    """Name the files that bind mounts lead to: CRIU follows no symlink, and the agent has some files of its own."""
    for mount in config.get("mounts", []):
        if mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or []):
            mount["source"] = os.path.realpath(sources.get(mount["destination"], mount["source"]))


def hook(folder: str, script: str) -> dict:  # type: ignore[type-arg]
    return {"path": f"{folder}/{handover.HOOK}", "args": [handover.HOOK, f"{folder}/{script}"], "timeout": 30}


def attaches_early(config: dict) -> bool:  # type: ignore[type-arg]
    """Whether dockerd attaches the network by a hook during the restore (before 28), not after `create`."""
    hooks = config.get("hooks", {}).get("prestart", [])
    return any("libnetwork-setkey" in hook.get("args", []) for hook in hooks)


def write(path: str, content: dict) -> None:  # type: ignore[type-arg]
    put(path, json.dumps(content))


def put(path: str, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    with open(path + ".part", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    os.rename(path + ".part", path)  # noqa: PTH104


def tell(folder: str, event: str) -> None:
    """One line into the agent's fifo; opened read-write so that it never waits for a reader or kills the writer."""
    fifo = os.open(f"{folder}/{handover.EVENTS}", os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, event.encode() + b"\n")
    os.close(fifo)


def wait_for_word(folder: str) -> str:
    """The agent's word. No deadline here: an agent that comes back after a crash says one or the other."""
    # read-write: the fifo must not report its end when a writer has closed it
    fifo = os.open(f"{folder}/{handover.GO}", os.O_RDWR)
    said = b""
    while b"\n" not in said:
        said += os.read(fifo, 64)
    os.close(fifo)
    return said.split(b"\n", 1)[0].decode()


def print_again(folder: str) -> None:
    """Print what the container had printed since the first pass of its log, into the pipes that it prints to.

    By a child: containerd reads the pipes only when `create` has returned, so more than a pipe holds would block it.
    The container does not run before the agent has heard `printed`.
    """
    path = f"{folder}/{handover.LOG}"
    if not os.path.exists(path) or os.path.getsize(path) == 0:  # noqa: PTH110, PTH202
        tell(folder, "printed")
        return
    if os.fork() != 0:
        return
    code = 1
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            while len(head := file.read(5)) == 5:
                stream, length = struct.unpack(">BI", head)
                left = memoryview(file.read(length))
                while left and stream in (1, 2):  # the agent has checked that; any other number is something of ours
                    left = left[os.write(stream, left) :]
        tell(folder, "printed")
        code = 0
    finally:
        os._exit(code)


def main(argv: list[str]) -> int:
    global_flags, flags, container = split_call(argv)
    folder = handover.folder(container)
    with open(f"{folder}/{handover.PLAN}") as file:  # noqa: PTH123
        plan = json.load(file)
    bundle = option(flags, "--bundle") or option(flags, "-b")
    with open(f"{bundle}/config.json") as file:  # noqa: PTH123
        config = json.load(file)
    early = attaches_early(config)
    amend_bundle(config, folder)
    mount_from(config, plan["sources"])
    name_cgroup(config, folder)
    write(f"{bundle}/config.json", config)
    root = os.path.join(bundle, config["root"]["path"])  # noqa: PTH118
    write(
        f"{folder}/{handover.STAGED}",
        {
            "pid": os.getpid(),
            "bundle": bundle,
            "root": root,
            "network_attached_early": early,
            "uids": config.get("linux", {}).get("uidMappings") or [],
            "gids": config.get("linux", {}).get("gidMappings") or [],
        },
    )
    command = [
        *("runc", *global_flags, "restore", "--detach", "--image-path", f"{folder}/{handover.IMAGES}"),
        *("--work-path", f"{folder}/{handover.WORK}", *plan["flags"], *flags, container),
    ]
    # read-write, and kept: a fifo holds what is in it until it is asked for, and ends with this process
    armed = os.open(f"{folder}/{handover.ARMED}", os.O_RDWR | os.O_CLOEXEC)
    inventory = os.open(f"{folder}/{handover.IMAGES}/{handover.INVENTORY}", os.O_RDWR | os.O_CLOEXEC)
    calls = os.open(f"{folder}/{handover.CRIU}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    path = {"PATH": f"{folder}/{handover.BIN}:{os.environ.get('PATH') or os.defpath}"}
    # a session of its own: containerd's end of this call must not be the end of the restore
    runc = subprocess.Popen(command, start_new_session=True, env={**os.environ, **path})
    tell(folder, "staged")
    if wait_for_word(folder) != handover.RESTORE:
        # whoever waits there fails of it, and so does who would begin to; then runc clears up
        for fifo, name in ((armed, handover.ARMED), (inventory, f"{handover.IMAGES}/{handover.INVENTORY}")):
            remove(f"{folder}/{name}")
            os.close(fifo)
        if not select.select([os.pidfd_open(runc.pid)], [], [], CLEAR_SECONDS)[0]:
            os.killpg(runc.pid, signal.SIGKILL)
        runc.wait()
        print("transship: the migration was taken back", file=sys.stderr)
        return 1
    restoring = Restoring(folder, runc, option(flags, "--pid-file"), calls)
    print_again(folder)
    there = f"{folder}/{handover.IMAGES}/{handover.INVENTORY_THERE}"
    with open(there, "rb") as file:  # noqa: PTH123
        content = file.read()
    os.rename(there, f"{folder}/{handover.IMAGES}/{handover.INVENTORY}")  # noqa: PTH104 - for a CRIU that comes late
    os.write(inventory, handover.for_fifo(content))
    return restoring.to_the_end() if early else restoring.to_the_namespaces()


class Restoring:
    """A restore under way, and how long `create` takes part in it."""

    def __init__(self, folder: str, runc: "subprocess.Popen[bytes]", pid_file: str, calls: int) -> None:
        self._folder = folder
        self._runc = runc
        self._pid_file = pid_file
        self._criu = calls
        self._began = time.time()
        self._ended = os.pidfd_open(runc.pid)
        # opened here, before anybody can write: a fifo that nobody has open forgets
        self._made, self._held = (
            os.open(f"{folder}/{fifo}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            for fifo in (handover.MADE, handover.HELD)
        )

    def to_the_end(self, first: int | None = None) -> int:
        """Wait until CRIU holds the tasks, or runc has failed; `create`'s exit code. `first`: as of `when_held`."""
        pid = when_held(self._held, self._ended, self._criu, first=first)
        if pid:
            self._write_pid(pid)
        self._say(pid)
        return 0 if pid else 1

    def to_the_namespaces(self) -> int:
        """Wait until the network namespace is there and locked, and leave the rest to a child; as `to_the_end`."""
        put(f"{self._folder}/{handover.RESTORING}", "")
        first, say_first = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(say_first)
                code = self.to_the_end(first)
            finally:
                os._exit(code)
        replace(self._folder, pid=child)
        pid = first_word(self._made, os.pidfd_open(child))
        if not pid:  # on the host's own network nothing is made; or it has failed before that
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(say_first, b"%d\n" % pid)
        self._write_pid(pid)
        return 0

    def _write_pid(self, pid: int) -> None:
        with open(self._pid_file, "w") as file:  # noqa: PTH123
            file.write(str(pid))

    def _say(self, pid: int) -> None:
        result = {"code": 0 if pid else 1, "pid": pid, "runc": self._runc.pid}
        write(f"{self._folder}/{handover.RESULT}", {**result, "began": self._began, "ended": time.time()})
        if pid:
            put(f"{self._folder}/{handover.RESTORED}", "")
        tell(self._folder, "held" if pid else "failed")


def first_word(fifo: int, ended: int, seconds: float | None = None) -> int:
    """A process id from the fifo; 0 if what would have written it has ended without that, or it takes too long."""
    ready, _, _ = select.select([fifo, ended], [], [], seconds)
    return int(os.read(fifo, 64)) if fifo in ready else 0


def when_held(held: int, ended: int, calls: int, seconds: float = NEXT_CALL_SECONDS, first: int | None = None) -> int:
    """The first process, once CRIU holds it; 0 if runc has ended without that, or waits for what can't come any more.

    That is so where CRIU is dead: runc hears of it when nobody has its socket any more, and what CRIU had forked by
    then has it. And where the first process is, of which `first` tells when it is there: dockerd kills it where it
    can't attach the network. It is a child of runc's, so CRIU does not hear of that.
    """
    criu: int | None = None
    alive: int | None = None
    patience: float | None = None
    while True:
        watched = [held, ended, calls, *(each for each in (criu, first, alive) if each is not None)]
        ready, _, _ = select.select(watched, [], [], patience)
        if held in ready:
            return int(os.read(held, 64))
        if first in ready:
            said, first = os.read(first, 64), None  # nothing is said where no namespace was made
            if said and (alive := end_of(int(said))) is None:
                return 0
            continue
        if calls in ready:
            criu, patience = end_of(int(os.read(calls, 256).split()[-1])), None
        elif ended in ready or alive in ready or criu not in ready:
            return 0
        if criu is None or criu in ready:  # runc calls it more than once: the next call comes at once
            criu, patience = None, seconds


def remove(file: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)  # noqa: PTH108


def end_of(pid: int) -> int | None:
    """What can be waited for until a process has ended; None where it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def replace(folder: str, **changed: int) -> None:
    """Write what is staged again, with something changed."""
    with open(f"{folder}/{handover.STAGED}") as file:  # noqa: PTH123
        write(f"{folder}/{handover.STAGED}", {**json.load(file), **changed})


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # containerd waits for this end in the blackout: the interpreter's own way out takes milliseconds
