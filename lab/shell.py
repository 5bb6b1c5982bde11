"""The lab's one door to processes: run one, start one, know one again later, end one.

A process is known by its number and its start time, never by its name: numbers are used again, names are shared.
Waiting is bounded everywhere and ends as soon as the awaited thing happens.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

Completed = subprocess.CompletedProcess[str]
Process = subprocess.Popen[Any]
PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL
TimeoutExpired = subprocess.TimeoutExpired
PATIENCE = float(os.environ.get("TRANSSHIP_LAB_PATIENCE", "1"))
"""How many times slower than usual this machine may be, as an emulated one is: all bounds are multiplied by it, and the
pauses between two looks, which there cost what is looked at its processor."""


class LabError(Exception):
    """Something in the lab did not do what it should; the message says what, for a person."""


class CommandFailed(LabError):
    """A command ended badly or took too long; carries what it said."""

    def __init__(self, argv: Sequence[str], how: str, output: str) -> None:
        tail = "\n".join(output.strip().splitlines()[-30:])
        super().__init__(f"{' '.join(argv)}: {how}\n{tail}".rstrip())
        self.argv, self.how, self.output = tuple(argv), how, output


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 60,
    input: str | None = None,  # noqa: A002 - the name subprocess.run uses
    stdin: IO[Any] | int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a command to its end and return what it wrote; raise if it failed (with `check`) or took too long."""
    source: Any = PIPE if input is not None else stdin if stdin is not None else DEVNULL
    process: subprocess.Popen[str] = subprocess.Popen(
        argv, stdin=source, stdout=PIPE, stderr=PIPE, env=env, cwd=cwd, start_new_session=True, text=True,
        errors="replace", pass_fds=pass_fds,
    )  # fmt: skip
    try:
        out, err = process.communicate(input, timeout=timeout * PATIENCE)
    except subprocess.TimeoutExpired:
        end(process)
        out, err = process.communicate()
        raise CommandFailed(argv, f"took more than {timeout * PATIENCE:g} s", out + err) from None
    except BaseException:
        end(process)
        raise
    if check and process.returncode:
        raise CommandFailed(argv, f"exit code {process.returncode}", out + err)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def popen(argv: Sequence[str], **options: Any) -> Process:
    """Start a command in a session of its own; takes what subprocess.Popen takes. End it with `end`."""
    options.setdefault("stdin", DEVNULL)
    return subprocess.Popen(argv, start_new_session=True, **options)


def detach(
    argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> "Proc":
    """Start a command that outlives this process and is not its child; its output goes to a file."""
    # The shell ends at once, so the command's parent is the machine's first process, which reaps it.
    script = 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & echo $!'
    done = run(["sh", "-c", script, "detach", str(log), *argv], env=env, pass_fds=pass_fds)
    process = Proc.of(int(done.stdout))
    if process is None:
        raise CommandFailed(argv, "ended at once", log.read_text())
    return process


def end(process: Process, how: signal.Signals = signal.SIGKILL, grace: float = 10) -> int:
    """End a process started here together with its children, and reap it."""
    # nsenter's child in another pid namespace is in the same process group, so it is reached too.
    if process.poll() is None:
        _signal_group(process.pid, how)
        try:
            process.wait(grace * PATIENCE)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command: for a shell that a person types into."""
    os.execvpe(argv[0], list(argv), dict(env))


def unwind_on_sigterm() -> None:
    """Let SIGTERM end this process through every `finally`: `timeout` sends it, and the lab would be left standing."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def wait_until(what: str, true: Callable[[], bool], timeout: float, every: float = 0.02) -> None:
    """Wait until a condition holds that the kernel can't tell us about; raise when it takes too long."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout * PATIENCE:g} s")
        time.sleep(every * PATIENCE)


@dataclass(frozen=True, slots=True)
class Proc:
    """One process on this machine, not another one that got the same number later."""

    pid: int
    started: int  # clock ticks since boot, from /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Look a process up by number; None if there is none (a zombie counts as none)."""
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return None if state in "ZX" else cls(pid, int(rest[18]))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Read back what `write` (or init.sh) wrote; None if that process is gone."""
        try:
            pid, started = map(int, file.read_text().split())
        except (OSError, ValueError):
            return None
        known = cls(pid, started)
        return known if known.alive() else None

    def write(self, file: Path) -> None:
        file.write_text(f"{self.pid} {self.started}\n")

    def alive(self) -> bool:
        return Proc.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process is gone."""
        handle = self._open()
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            os.close(handle)

    def wait(self, timeout: float) -> bool:
        """Wait for the end of the process; False if it takes too long."""
        handle = self._open()
        if handle is None:
            return True
        try:
            # A pidfd becomes readable when the process has died, whoever its parent is.
            return bool(select.select([handle], [], [], timeout * PATIENCE)[0])
        finally:
            os.close(handle)

    def end(self, grace: float = 10) -> None:
        """Ask it to end, insist after a grace period, and wait until it is gone."""
        self.signal(signal.SIGTERM)
        if not self.wait(grace):
            self.signal(signal.SIGKILL)
            if not self.wait(10):
                raise LabError(f"process {self.pid} can't be killed")

    def _open(self) -> int | None:
        # The check comes after the open: from then on the number can't be given to another.
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():
            return handle
        os.close(handle)
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
