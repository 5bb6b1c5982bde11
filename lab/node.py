"""One machine of the lab: namespaces, a root file system, a cgroup, a cable; and commands run in it.

It knows nothing of Docker or of the broker: `lab.host` and `lab.broker` build on it. Its place on the outer
machine's disk holds its pid file, its disks and the logs of its start.
"""

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from lab import cgroups, shell
from lab.network import Address, Namespace, Switch
from lab.shell import CommandFailed, Completed, LabError, Proc, Process

_INIT = Path(__file__).with_name("init.sh")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/transship/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
}
# Runs in the machine, yet tells by which number the outer machine knows the daemon: its standard input is the
# outer machine's /proc, where `self` is whoever asks.
_DAEMON = """
log=$1; shift
exec 3<&0
{
    read -r pid _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ started _ </proc/self/fd/3/self/stat
    echo "$pid $started"
    exec setsid "$@" >>"$log" 2>&1 </dev/null 3<&-
} &
"""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine; every fact about its running state is read from its place, so any process can use it."""

    lab: str
    name: str
    place: Path
    root: tuple[Path, ...]  # read-only layers, topmost first
    switch: Switch
    address: Address
    source: Path | None = None  # bound into the machine, if given
    cgroup2: bool = False

    @property
    def namespace(self) -> Namespace:
        return Namespace.of(self.lab, self.name)

    # Life

    def seed(self, path: str, content: str, mode: int = 0o644) -> None:
        """Put a file into the machine's root before its first start."""
        target = self.place / "upper" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def start(self) -> None:
        """Boot it; on return its file systems and network are there and nothing else runs."""
        if self.running():
            raise LabError(f"{self.name} is already running")
        for folder in ("upper", "work", "root"):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        self.namespace.make()
        self.switch.plug(self.name, self.namespace, self.address)
        hierarchies = cgroups.make(self.lab, self.name, self._cgroup_record, version2=self.cgroup2)
        # The sudden end of an older machine leaves its pid file; the new one must not be taken for it.
        self._pid_file.unlink(missing_ok=True)
        namespaces = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup"]
        argv = self.namespace.enter("unshare", *namespaces, "--", str(_INIT))
        log = self.place / "boot.log"
        launcher = shell.detach(cgroups.join(self._cgroup_record, argv), log, env=self._init_environment(hierarchies))
        self._wait_for_boot(launcher, log)
        cgroups.settle(self._cgroup_record)

    def _init_environment(self, hierarchies: str) -> dict[str, str]:
        return {
            "PATH": _ENVIRONMENT["PATH"],
            "PLACE": str(self.place),
            "NAME": self.name,
            "LOWERS": ":".join(map(str, self.root)),
            "SOURCE": str(self.source or ""),
            "CGROUPS": hierarchies,
        }

    def _wait_for_boot(self, launcher: Proc, log: Path) -> None:
        def booted() -> bool:
            if not launcher.alive():
                raise LabError(f"{self.name} did not boot:\n{log.read_text()}")
            process = Proc.read(self._pid_file)
            return process is not None and Path(f"/proc/{process.pid}/root/run/booted").exists()

        shell.wait_until(f"{self.name} boots", booted, timeout=30)

    def running(self) -> bool:
        return Proc.read(self._pid_file) is not None

    def init(self) -> Proc:
        """Name the machine's first process, by its number on the outer machine."""
        process = Proc.read(self._pid_file)
        if process is None:
            raise LabError(f"{self.name} is not running")
        return process

    def kill(self) -> None:
        """Switch it off like a power cut: everything in it ends at once, its disks stay."""
        process = Proc.read(self._pid_file)
        if process is not None:
            process.signal(signal.SIGKILL)
            # The frozen can't die before they are thawed, and the first process waits for all others.
            cgroups.thaw(self._cgroup_record)
            if not process.wait(30):
                raise LabError(f"{self.name} can't be killed")
        cgroups.remove(self._cgroup_record)
        self.switch.unplug(self.name)
        self.namespace.remove()

    def remove(self) -> None:
        """Switch it off, end its helpers on the outer machine and remove its disks; safe whatever is left of it."""
        self.kill()
        for file in self.place.glob("*.pid"):
            if process := Proc.read(file):
                process.end(grace=0)
        if self.place.exists():
            shutil.rmtree(self.place)

    # Commands

    def enter(self, argv: Sequence[str]) -> list[str]:
        """Build the command line that runs a command in this machine."""
        kinds = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd"]
        nsenter = ["nsenter", f"--target={self.init().pid}", *kinds, "--", *argv]
        # nsenter shows the command the machine's cgroups but leaves it in the caller's.
        return cgroups.join(self._cgroup_record, nsenter)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002 - the name subprocess.run uses
        stdin: IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command in the machine to its end."""
        environment = _ENVIRONMENT | dict(env or {})
        try:
            done = shell.run(self.enter(argv), check=check, timeout=timeout, input=input, stdin=stdin, env=environment)
        except CommandFailed as error:
            raise CommandFailed([f"{self.name}:", *argv], error.how, error.output) from None
        done.args = list(argv)  # not how it got there
        return done

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any) -> Process:
        """Start a command in the machine, as a child of this process; end it with `lab.shell.end`."""
        return shell.popen(self.enter(argv), env=_ENVIRONMENT | dict(env or {}), **options)

    def become(self, argv: Sequence[str]) -> NoReturn:
        """Replace this process by a command in the machine."""
        shell.become(self.enter(argv), _ENVIRONMENT)

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file in the running machine, making its folder."""
        self.run(["install", "-D", f"--mode={mode:o}", "/dev/stdin", path], input=content)

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    # Daemons

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Proc:
        """Start a daemon that outlives this process; its output goes to /var/log/NAME.log in the machine."""
        script = ["sh", "-c", _DAEMON, name, self._log(name), *argv]
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        try:
            done = shell.run(self.enter(script), env=_ENVIRONMENT | dict(env or {}), stdin=proc)
        finally:
            os.close(proc)
        pid, started = map(int, done.stdout.split())
        process = Proc(pid, started)
        process.write(self._daemon_file(name))
        return process

    def daemon(self, name: str) -> Proc | None:
        """Find a daemon started here earlier; None if it has ended."""
        return Proc.read(self._daemon_file(name))

    def wait_for_daemon(self, name: str, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until a daemon says it is ready; raise with the end of its log when it ends instead."""

        def check() -> bool:
            if ready():
                return True
            if self.daemon(name) is None:
                raise LabError(f"{name} on {self.name} ended:\n{self.log_tail(name)}")
            return False

        try:
            shell.wait_until(f"{name} on {self.name}", check, timeout)
        except LabError as error:
            error.add_note(self.log_tail(name) if self.running() else "the machine is off")
            raise

    def log(self, name: str) -> str:
        return self.run(["cat", self._log(name)], check=False).stdout

    def log_tail(self, name: str, lines: int = 30) -> str:
        return self.run(["tail", f"--lines={lines}", self._log(name)], check=False).stdout

    def _log(self, name: str) -> str:
        return f"/var/log/{name}.log"

    def _daemon_file(self, name: str) -> Path:
        return self.place / f"{name}.pid"

    @property
    def _pid_file(self) -> Path:
        return self.place / "pid"

    @property
    def _cgroup_record(self) -> Path:
        return self.place / "cgroups"
