"""Programs that wait for the word and then tell: started before a measurement, so that no start-up is measured."""

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lab import shell
from lab.lab import Lab
from lab.node import Node
from lab.shell import CommandFailed, LabError

_HERE = Path(__file__).parent
_PRIMED = 'echo ready; read -r _; exec "$@" 2>&1'
_START_SECONDS = 30.0
PORT = 7990


class Talker:
    """A process that is spoken to in lines; every wait is bounded."""

    def __init__(self, what: str, process: shell.Process) -> None:
        self._what, self._process, self._heard = what, process, b""

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise LabError(f"{self._what} has ended") from None

    def hear(self, seconds: float) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        end, handle = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
                raise LabError(f"{self._what} says nothing for {seconds:g} s")
            data = os.read(handle, 65536)
            if not data:
                raise LabError(f"{self._what} has ended: {self._heard.decode(errors='replace')}")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode(errors="replace")

    def close(self) -> None:
        shell.end(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Primed(Talker):
    """A command in a machine that begins at a word: neither nsenter nor a fork of ours is measured."""

    def __init__(self, node: Node, *argv: str) -> None:
        process = node.popen(["sh", "-c", _PRIMED, "primed", *argv], stdin=shell.PIPE, stdout=shell.PIPE)
        super().__init__(f"{argv[0]} on {node.name}", process)
        self._argv = argv
        self.peak_rss_mib = 0.0
        """Of the largest process among it and its children, known after its end."""
        self.hear(_START_SECONDS)

    def run(self, seconds: float) -> None:
        """Let it go, and wait for its end."""
        self.say("go")
        if not _ended(self._process.pid, seconds):
            raise CommandFailed(self._argv, f"took more than {seconds:g} s", self._said())
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_rss_mib = usage.ru_maxrss / 1024
        if self._process.returncode:
            raise CommandFailed(self._argv, f"exit code {self._process.returncode}", self._said())

    def _said(self) -> str:
        # What it has started may hold the pipe open: no waiting for its end.
        assert self._process.stdout is not None
        handle, said = self._process.stdout.fileno(), self._heard
        while select.select([handle], [], [], 0)[0] and (data := os.read(handle, 65536)):
            said += data
        return said.decode(errors="replace")


class Carrier:
    """A connection between two machines, ready to carry files."""

    def __init__(self, source: Node, target: Node) -> None:
        program = ["python3", "-c", (_HERE / "carry.py").read_text()]
        self._receiver = _talker("the receiver", target, [*program, "receive", str(PORT)])
        try:
            self._receiver.hear(_START_SECONDS)
            self._sender = _talker("the sender", source, [*program, "send", target.address.v4, str(PORT)])
        except BaseException:
            self._receiver.close()
            raise
        self._sender.hear(_START_SECONDS)

    def carry(self, paths: Sequence[tuple[str, str]], seconds: float) -> None:
        """Carry these: paths at the source, each with its path at the target."""
        self._sender.say(json.dumps(paths))
        self._sender.hear(seconds)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


class Client(Talker):
    """The lab's client, asking the container."""

    def __init__(self, lab: Lab, kind: str, address: str, port: int) -> None:
        argv = [sys.executable, str(_HERE / "client.py"), kind, address, str(port)]
        super().__init__(f"{kind} client", lab.client_popen(argv, stdin=shell.PIPE, stdout=shell.PIPE))

    def ask(self, command: str, seconds: float) -> dict[str, Any]:
        self.say(command)
        found: dict[str, Any] = json.loads(self.hear(seconds))
        return found


def _talker(what: str, node: Node, argv: Sequence[str]) -> Talker:
    return Talker(f"{what} on {node.name}", node.popen(argv, stdin=shell.PIPE, stdout=shell.PIPE))


def _ended(pid: int, seconds: float) -> bool:
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
