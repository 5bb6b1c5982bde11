"""The containers of a campaign: one at a time, moved to and fro over several runs, and what can be lost of it."""

import contextlib
import enum
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import shell
from lab.host import Host
from lab.lab import Lab
from lab.macvlan import NETWORK, Place, ensure_network

PROGRAM = Path(__file__).with_name("workload.py")
NAME = "chaos"
VOLUME = "chaos-data"


class Load(enum.StrEnum):
    """What runs in the container."""

    COUNTER = "counter"  # Docker's own bridge; memory, the root file system and a named volume
    RECORDS = "records"  # an address of its own; a client outside whose one connection must not break
    LARGE = "large"  # the first, with memory that takes its time

    @property
    def mib(self) -> int:
        return 48 if self is Load.LARGE else 8

    @property
    def files(self) -> list[str]:
        return ["/count"] if self is Load.RECORDS else ["/count", "/data/count"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a container's files and its log have in them."""

    numbers: tuple[tuple[int, ...], ...]
    """Of each file."""
    token: str
    """Of the process that has written the last line."""
    logged: tuple[int, ...]
    records: int


class Running:
    """A container of a campaign, and its client."""

    def __init__(self, lab: Lab, load: Load, number: int) -> None:
        self._lab = lab
        self.load = load
        self._place = Place(100 + number % 100)
        self._folder = tempfile.TemporaryDirectory(prefix="chaos-client")
        self._client: shell.Process | None = None

    def start(self, host: Host) -> None:
        host.ensure_image("py")
        options = ["--restart", "always", "--memory", "256m"]
        if self.load is Load.RECORDS:
            ensure_network(host)
            # a dockerd that was killed while it removed a container may have left its endpoint, and refuses the name
            host.docker("network", "disconnect", "--force", NETWORK, NAME, check=False)
            options += self._place.options
        else:
            options += ["--volume", f"{VOLUME}:/data"]
        serve = ["python3", "-u", "-c", PROGRAM.read_text(), "serve", str(self.load.mib), *self.load.files]
        host.docker("run", "--detach", "--name", NAME, *options, "py", *serve)
        self.connect()

    def connect(self) -> None:
        """Start the client, anew if the last one's connection is gone."""
        self._hang_up()
        if self.load is Load.RECORDS:
            with self._output.open("w") as output:
                argv = [sys.executable, str(PROGRAM), "client", self._place.v4]
                self._client = self._lab.client_popen(argv, stdout=output, stderr=shell.STDOUT)

    @contextlib.contextmanager
    def client_silent(self) -> Iterator[None]:
        """Have the client say nothing as long as the block runs; its connection stays."""
        assert self._client is not None
        self._client.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._client.send_signal(signal.SIGCONT)

    @property
    def _output(self) -> Path:
        return Path(self._folder.name) / "client.json"

    def client_state(self) -> dict[str, object]:
        """What the client has said last; empty while it has not."""
        if self._client is None:
            return {}
        lines = self._output.read_text().rpartition("\n")[0].splitlines()
        try:
            state: dict[str, object] = json.loads(lines[-1]) if lines else {}
        except ValueError:
            state = {"wrong": " ".join(lines[-3:])}
        return state

    def _hang_up(self) -> None:
        if self._client is not None:
            shell.end(self._client)
            self._client = None

    def remove(self) -> None:
        self._hang_up()
        self._folder.cleanup()
        for host in self._lab.hosts.values():
            host.docker("rm", "--force", "--volumes", NAME, check=False)
            host.docker("volume", "rm", "--force", VOLUME, check=False)


def read(host: Host, container: str, pid: int, load: Load, *, seconds: float = 5.0) -> Written:
    """What it has written, read through the kernel's view of its root, and from dockerd's log file."""
    end = time.monotonic() + seconds
    while True:
        try:
            return _read(host, container, pid, load)
        except (OSError, ValueError, IndexError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _read(host: Host, container: str, pid: int, load: Load) -> Written:
    files = [Path(f"/proc/{pid}/root{name}").read_text().split("\n")[:-1] for name in load.files]
    rows = [[line.split() for line in lines] for lines in files]
    last = rows[0][-1]
    return Written(
        tuple(tuple(int(row[0]) for row in each) for each in rows),
        last[1],
        tuple(_logged(host, container)),
        int(last[2]),
    )


def _logged(host: Host, container: str) -> list[int]:
    folder = Path(f"/proc/{host.node.init().pid}/root/var/lib/docker/containers/{container}")
    numbers = []
    for line in (folder / f"{container}-json.log").read_text().split("\n")[:-1]:
        try:
            text = json.loads(line)["log"].strip()
        except ValueError:  # cut by a full disk: its number is missing, which is judged
            continue
        if text.isdigit():  # a move that was taken back may have left a line that looks empty
            numbers.append(int(text))
    return numbers
