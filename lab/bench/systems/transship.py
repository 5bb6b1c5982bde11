"""transship: one command over MQTT, with either strategy."""

import asyncio
import time

from pydantic import ValidationError

from lab.bench import meters
from lab.bench.systems.base import MOVE_SECONDS, NAME, Load, System, Unable
from lab.bench.systems.docker import start_container
from lab.cluster import Cluster, migration
from lab.host import Host
from lab.macvlan import ensure_network
from lab.shell import LabError
from protocol.commands import Command, Reply, ReplyKind
from protocol.errors import Consequence

_AGENT = "transship-agent"


class TransshipSystem(System):
    """See the module."""

    def __init__(self, strategy: str, cluster: Cluster, source: Host, target: Host) -> None:
        self.name = f"transship-{strategy}"
        self.engine = str(source.spec.engine)
        self.source, self.target = source.node, target.node
        self._strategy, self._cluster, self._from, self._to = strategy, cluster, source, target
        self._reply: Reply | None = None

    def equip(self, image: str) -> None:
        for host in (self._from, self._to):
            ensure_network(host)
            host.ensure_image(image)

    def start(self, load: Load) -> None:
        self._command()  # better now than after the container has its memory
        start_container(self._from, "run -d", load)

    def prepare(self) -> None:
        self._reply = None
        for daemon in self._agents():
            daemon.forget_peak()

    def move(self) -> float:
        return asyncio.run(self._move())

    async def _move(self) -> float:
        async with asyncio.timeout(MOVE_SECONDS), self._cluster.controller() as controller:
            began = time.monotonic()
            async for reply in controller.command(self._from.name, self._command()):
                self._reply = reply
            total = time.monotonic() - began
        last = self._reply
        if last is None or last.kind is not ReplyKind.FINISHED:
            error = last.error if last is not None else None
            said = f"{error.code}: {error.message}" if error is not None else "no answer"
            if error is not None and error.consequence is Consequence.UNTOUCHED:
                raise Unable(said)
            raise LabError(said)
        return total

    def _command(self) -> Command:
        try:
            return migration(NAME, self._to.name, strategy=self._strategy)
        except ValidationError:
            raise Unable(f"this version has no strategy {self._strategy}") from None

    def _agents(self) -> list[meters.Daemon]:
        return [meters.Daemon.of(node, _AGENT) for node in (self.source, self.target)]

    def peak_rss_mib(self) -> float:
        return max(daemon.peak_mib() for daemon in self._agents())

    def agent_seconds(self) -> float:
        return sum(daemon.seconds() for daemon in self._agents())

    def report(self) -> dict[str, float]:
        report = self._reply.report if self._reply is not None else None
        if report is None:
            return {}
        found = {"blackout": report.blackout_ms, "freeze": report.freeze_ms, "dump": report.dump_ms}
        found |= {"restore": report.restore_ms, "total": report.total_ms}
        found |= {f"at {each.phase}": each.at_ms for each in report.phases}
        return {key: round(value, 1) for key, value in found.items() if value is not None}

    def clean(self) -> None:
        for host in (self._from, self._to):
            host.docker("rm", "--force", NAME, check=False)
