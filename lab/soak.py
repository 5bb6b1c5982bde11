"""`./scripts/soak`: a container is moved many times while it exchanges records over connections that must not break.

Four connections at once, IPv4 and IPv6, with the server in the container and outside of it; both sides send numbered,
checksummed records as fast as they can (tests/e2e/stream_records.py). One that is missing, comes twice or is not what
was sent ends it with the exit code 1.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import shell
from lab.cluster import Cluster
from lab.host import Engine, HostSpec
from lab.lab import CLIENT_ADDRESS
from lab.macvlan import Place, ensure_network
from lab.shell import LabError
from protocol.commands import ReplyKind
from protocol.status import MigrationReport

RECORDS = Path(__file__).parents[1] / "tests" / "e2e" / "stream_records.py"
END_SECONDS = 150.0
HOSTS = [
    HostSpec("a26", Engine.DOCKER26),
    HostSpec("b26", Engine.DOCKER26),
    HostSpec("a28", Engine.DOCKER28),
    HostSpec("b28", Engine.DOCKER28),
]


class Streams:
    """A container, and the other ends of its four connections at the lab's client."""

    def __init__(self, cluster: Cluster, name: str, place: Place, folder: Path) -> None:
        self._cluster, self._name, self._place, self._folder = cluster, name, place, folder
        self._drivers: dict[str, shell.Process] = {}

    def start(self, host: str) -> None:
        """Run the container, and connect."""
        there = self._cluster[host]
        there.ensure_image("py")
        connects = [f"--connect={CLIENT_ADDRESS.v4}:7003", f"--connect={CLIENT_ADDRESS.v6}:7004"]
        command = ["python3", "-c", RECORDS.read_text(), "partner", "--listen=7001", "--listen=7002", *connects]
        there.docker("run", "-d", "--name", self._name, *self._place.options, "py", *command)
        ends = {
            "IPv4, server inside": f"--connect={self._place.v4}:7001",
            "IPv6, server inside": f"--connect={self._place.v6}:7002",
            "IPv4, client inside": "--listen=7003",
            "IPv6, client inside": "--listen=7004",
        }
        for kind, end in ends.items():
            with self._output(kind).open("w") as output:
                # the politest priority: it takes whatever the machine has left
                argv = ["nice", "-n", "19", sys.executable, str(RECORDS), "drive", end]
                self._drivers[kind] = self._cluster.lab.client_popen(argv, stdout=output)

    def _output(self, kind: str) -> Path:
        return self._folder / f"{kind}.json"

    def states(self) -> dict[str, dict[str, Any]]:
        """How far each connection is; an empty one where it has not said so yet."""
        last = {kind: self._output(kind).read_text().rpartition("\n")[0].splitlines() for kind in self._drivers}
        return {kind: json.loads(lines[-1]) if lines else {} for kind, lines in last.items()}

    async def flowing(self, seconds: float = 30.0) -> None:
        """Wait until each connection has received more than it has now.

        Raises:
            LabError: one does not, or has ended.

        """
        began, end = self.states(), time.monotonic() + seconds
        while True:
            states = self.states()
            ended = [f"{kind}: {states[kind]}" for kind, process in self._drivers.items() if process.poll() is not None]
            if ended:
                raise LabError(f"a connection has ended: {ended[0]}")
            still = [kind for kind in states if states[kind].get("received", 0) <= began[kind].get("received", 0)]
            if not still:
                return
            if time.monotonic() > end:
                raise LabError(f"nothing is received for {seconds:g} s: {still}: {states}")
            await asyncio.sleep(0.1)

    def end(self) -> dict[str, dict[str, Any]]:
        """Let both sides say what they have received; what each found."""
        for process in self._drivers.values():
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + END_SECONDS
        for process in self._drivers.values():
            process.wait(max(0.0, end - time.monotonic()))
        return self.states()

    def close(self) -> None:
        for process in self._drivers.values():
            shell.end(process)


async def move_about(cluster: Cluster, name: str, way: Sequence[str], streams: Streams) -> list[MigrationReport]:
    """Move from host to host; after each move every connection has to go on.

    Raises:
        LabError: a move failed, or a connection does not go on.

    """
    reports = []
    await streams.flowing()
    for source, target in itertools.pairwise(way):
        reply = await cluster.migrate(name, source, target)
        if reply.kind is not ReplyKind.FINISHED or reply.report is None:
            raise LabError(f"the move from {source} to {target} failed: {reply.error}")
        reports.append(reply.report)
        await streams.flowing()
    return reports


def main() -> int:
    options = _options()
    shell.unwind_on_sigterm()
    cluster = Cluster.up("soak", HOSTS, say=print)
    try:
        for host in cluster.lab.hosts.values():
            ensure_network(host)
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(_soak(cluster, options, Path(folder)))
    finally:
        cluster.lab.down()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--moves", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of the way that is taken")
    return parser.parse_args()


async def _soak(cluster: Cluster, options: argparse.Namespace, folder: Path) -> int:
    way, dice, name = [HOSTS[0].name], random.Random(options.seed), "soak"
    while len(way) <= options.moves:
        way.append(dice.choice([spec.name for spec in HOSTS if spec.name != way[-1]]))
    streams = Streams(cluster, name, Place(200), folder)
    blackouts: list[float] = []
    wrong = ""
    began = time.monotonic()
    try:
        streams.start(way[0])
        for number, pair in enumerate(itertools.pairwise(way), 1):
            (report,) = await move_about(cluster, name, pair, streams)
            blackouts.append(report.blackout_ms or 0.0)
            print(
                f"{number:4} {pair[0]} -> {pair[1]}  blackout {blackouts[-1]:.0f} ms  {'; '.join(report.notes)}",
                flush=True,
            )
        found = streams.end()
    except LabError as error:
        wrong, found = str(error), streams.states()
    finally:
        streams.close()
    for kind, state in found.items():
        print(f"{kind}: {json.dumps(state)}")
    if blackouts:
        print(f"{len(blackouts)} moves in {time.monotonic() - began:.0f} s")
        print(f"blackout {min(blackouts):.0f} to {max(blackouts):.0f} ms, median {statistics.median(blackouts):.0f} ms")
    ok = not wrong and all(state.get("ok") for state in found.values())
    print("No record is missing, none came twice, no connection broke." if ok else f"NO: {wrong or found}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
