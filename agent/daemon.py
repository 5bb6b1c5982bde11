"""The composition root: builds the doors, takes up the journal, runs until it is told to stop, stops cleanly."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import uvloop

from agent import dashboard
from agent.announcer import Announcer
from agent.base import config
from agent.base.config import Settings
from agent.base.errors import AgentError
from agent.base.heap import Heap, one_arena
from agent.base.pace import Pace
from agent.base.shell import Shell
from agent.certificates import Certificates
from agent.check.keeper import Keeper as Outlooks
from agent.check.question import Questions
from agent.dispatcher import Dispatcher
from agent.doors import systemd, tmpfs
from agent.doors.docker import Docker
from agent.doors.docker_events import DockerEvent
from agent.doors.http_server import HttpServer
from agent.doors.logind import Logind
from agent.doors.mqtt import Broker
from agent.doors.peer_client import PeerClient
from agent.doors.peer_server import PeerServer
from agent.inventory import Inventory
from agent.logs import set_up_logging
from agent.migration import cleared, homes, kept
from agent.migration.host import Host
from agent.migration.journal import Journal
from agent.migration.kept import Keeper
from agent.migration.machine import Role
from agent.migration.sources import Sources
from agent.migration.targets import Targets
from agent.shutdown.evacuation import Around
from agent.shutdown.evacuations import Evacuations
from agent.shutdown.homecoming import Homecoming
from agent.shutdown.host_down import HostDown
from agent.shutdown.moving_away import MovesAway
from agent.shutdown.sleepers import Sleepers
from agent.vault.natives import Natives
from agent.vault.schedule import Schedule
from agent.vault.vault import Vault
from protocol.peer import DecisionKind
from protocol.status import HostStatus, Phase

log = logging.getLogger("agent")

READ_RETAINED_SECONDS = 2.0
PASSWORD = "TRANSSHIP_BROKER__PASSWORD"  # noqa: S105 - the name of one
LOGIND_SECONDS = 2.0
"""Of what logind gives, kept for what follows."""
CHANGES = ("start", "die", "rename", "destroy")
"""Events after which another checkpoint may be the next one that is due."""


class Asking:
    """A target's two ways to its source's decision: the peer link, and what is retained at the broker."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    async def ask_peer(self, source: str, migration: str) -> DecisionKind:
        if source == self._agent.host.name:  # a restore from an archive
            return await self._agent.vault.decision(source, migration)
        async with self._agent.peer(source) as peer:
            return (await peer.decision(migration)).decision

    async def read_retained(self, source: str, migration: str) -> DecisionKind:
        with contextlib.suppress(TimeoutError, AgentError):
            async with asyncio.timeout(READ_RETAINED_SECONDS):
                notice = await self._agent.broker.await_decision(migration, source)
                return DecisionKind(notice.decision)
        return DecisionKind.PENDING


class Agent:
    """All the rooms of one host, put together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.broker = Broker(settings.broker, settings.host, self._command, self._recorded)
        self.announcer = Announcer(settings, self.broker)
        self.host = Host(
            settings,
            Docker(settings.docker, settings.deadlines.docker),
            Shell(),
            Journal(settings.state_dir / "journal.sqlite"),
            Pace(settings.limits.bandwidth or None),
        )
        self.sources = Sources(self.host, self.peer, self.announcer)
        self.targets = Targets(self.host, Asking(self), lambda peer, migration: self.vault.decision(peer, migration))
        self.vault = Vault(self.host, self.sources, self.targets, self.peer)
        self.natives = Natives(self.host, self.sources, self.peer)
        self.kept = Keeper(self.host.docker, settings.state_dir)
        self.schedule = Schedule(self.host.docker, self.vault.store, self.vault.scheduled, settings.host)
        self.sleepers = Sleepers(self.host, self.sources, self.announcer.publish_event)
        self._noted: set[asyncio.Task[None]] = set()
        questions = Questions(self.host, self.announcer, self.peer, self.sources.of_container)
        self.outlooks = Outlooks(questions, self._moving, self._outlook_changed, settings.host)
        around = Around(self.host, self.sources, self.announcer, self.peer)
        self.evacuations = Evacuations(around, self.announcer)
        self.homecoming = Homecoming(settings.host, self.announcer, self.evacuations, settings.limits.migrations)
        moves_away = MovesAway(self.evacuations, settings.limits.migrations)
        self.host_down = HostDown(self.host, self.sleepers, moves_away)
        self.logind = Logind(self._goes_down, self._stays_up)
        self.dispatcher = Dispatcher(
            self.host,
            self.announcer,
            self.sources,
            self.targets,
            self.vault,
            self.natives,
            self.evacuations,
            self.host_down,
            questions,
        )
        self.inventory = Inventory(
            self.host.docker,
            settings.host,
            self.announcer,
            engine=self.host.engine,
            migration_of=self._migration_of,
            home_of=lambda container_id: homes.of(settings.state_dir, container_id),
            outlook_of=self.outlooks.outlook,
        )
        self.heap = Heap(self._moving)
        self.targets.on_end = self._moved
        self._server = PeerServer(settings.peer, self.targets, self.natives)
        self.certificates = Certificates(
            settings, self.announcer, self._server.reload, self.broker.until_connected, self.host.shell
        )
        self._http = HttpServer(settings.http)
        if settings.http.port and settings.http.metrics:
            self._count()
        if settings.http.dashboard:
            for path, page in dashboard.pages(settings.http.broker_url):
                self._http.serve(path, page)

    def _count(self) -> None:
        """Have figures for Prometheus; without them nobody pays for the library."""
        from agent.metrics import Looks, Metrics

        looks = Looks(
            running=lambda: Counter({"source": len(self.sources.open()), "target": len(self.targets.open())}),
            in_doubt=self._in_doubt,
            containers=self.announcer.states,
            docker=lambda: self.inventory.connected,
            broker=lambda: self.broker.connected,
            dropped=lambda: self.broker.dropped,
            received=lambda: self._server.received,
        )
        metrics = Metrics(self.host.name, self._settings.limits.migrations, looks)
        self.announcer.on_migration(metrics.changed)
        self.host.journal.on_write = metrics.journal_written
        self._http.serve("/metrics", metrics.page)

    def _in_doubt(self) -> dict[str, int]:
        """How many open migrations may need a person, by this host's role."""
        open_ones = self.dispatcher.open_migrations()
        return {role: sum(bool(one.doubt) for one in open_ones if one.role == role) for role in ("source", "target")}

    def peer(self, name: str, last_url: str = "") -> PeerClient:
        """A client for a peer, at the address that it says of itself, or `last_url` until it has said one."""
        return PeerClient(
            self._settings.peer, self._settings.deadlines, name, lambda: self.announcer.url(name) or last_url
        )

    def _migration_of(self, container_id: str) -> str | None:
        """What a container is part of, that leaves."""
        found = self.sources.of_container(container_id)
        return found.id if found is not None else None

    def _moving(self) -> bool:
        """Whether a move is under way that goes on by itself."""
        runs = [*self.sources.open(), *(target.run for target in self.targets.open())]
        return any(run.doubt is None and run.phase is not Phase.STRANDED for run in runs)

    def _moved(self) -> None:
        self.outlooks.wake()
        self.heap.wake()

    def _outlook_changed(self, container_id: str) -> None:
        self._note(asyncio.create_task(self.inventory.has_outlook(container_id), name="tell an outlook"))

    async def _host_heard(self, status: HostStatus) -> None:
        await self.announcer.heard(status)
        self.outlooks.heard(status)

    def _note(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._noted.add(task)
        task.add_done_callback(self._noted.discard)
        return task

    def _goes_down(self, seconds: float) -> None:
        """For so long it is waited with that; then systemd stops this agent, before dockerd, and gives it time, too."""
        more = self._settings.shutdown.seconds if systemd.runs_us() else 0.0
        task = self._note(
            self.host_down.begin(max(1.0, seconds - LOGIND_SECONDS) + more, "the host is being shut down")
        )
        lock = self.logind.lock
        if lock is not None:  # this one: a shutdown that is called off and another one have each their own
            task.add_done_callback(lambda _: lock.close())

    def _stays_up(self) -> None:
        self._note(self.host_down.called_off())

    async def _command(self, command: object, answer: object) -> None:
        await self.dispatcher.handle(command, answer)  # type: ignore[arg-type]

    async def _recorded(self, command: object, answer: object) -> bool:
        return await self.dispatcher.recorded(command, answer)  # type: ignore[arg-type]

    async def _docker_event(self, event: DockerEvent) -> None:
        await self.sleepers.on_event(event)
        await self.outlooks.on_event(event)
        if event.kind != "container":
            return
        if event.action == "die":
            self.sources.container_died(event.container_id)
        elif event.action == "kill":
            sent = event.attributes.get("signal", "")
            self.sources.container_signalled(event.container_id, sent)
            self.targets.container_signalled(event.container_id, sent)
        if event.action in ("start", "destroy", "update"):
            self.kept.started(event.container_id)
        if event.action == "destroy":
            self.evacuations.gone(event.container_id)
            self._note(asyncio.create_task(cleared.see_to(self.host.shell, event.container_id), name="clear"))
        if event.action in CHANGES:
            self.schedule.changed()

    def _docker_listed(self) -> None:
        self.kept.look()
        self.natives.look()
        self.schedule.changed()
        self.sleepers.listed()
        self.outlooks.listed(self.inventory.alive())
        self._note(asyncio.create_task(self.host_down.boot(), name="start what was hibernated"))

    async def run(self, stopped: asyncio.Event) -> None:
        """Run until `stopped` is set.

        Raises:
            OSError, ssl.SSLError: the port is taken, or the certificates are unusable.

        """
        await self.host.journal.open()
        await self._server.start()  # first: where another agent has the port, the journal is that one's to take up
        await self._http.start()
        await tmpfs.make_home(self.host.shell)
        self.vault.sweep()
        self.natives.sweep()
        kept.sweep(self._settings.state_dir)
        self.announcer.on_heard(self.evacuations.heard)
        self.announcer.on_heard(self.homecoming.heard)
        self.announcer.on_end(self.evacuations.ended)
        self.announcer.on_move(lambda run: self.inventory.refresh(run.record["container_id"]))
        self.announcer.on_move(lambda run: self._moved())
        await self._recover()
        await self.sleepers.open()
        self.inventory.on_event(self._docker_event)
        self.inventory.on_list(self._docker_listed)
        self.broker.on_host_status(self._host_heard)
        loops = [
            asyncio.create_task(self.broker.run(), name="broker"),
            asyncio.create_task(self.inventory.run(), name="inventory"),
            asyncio.create_task(self._watchdog(), name="watchdog"),
            asyncio.create_task(self.announcer.watch_load(), name="this host's load"),
            asyncio.create_task(self.schedule.run(), name="scheduled checkpoints"),
            asyncio.create_task(self.certificates.run(), name="certificates"),
            asyncio.create_task(self.logind.run(), name="logind"),
            asyncio.create_task(self.outlooks.run(), name="outlooks"),
        ]
        systemd.notify("READY=1", f"STATUS=agent of {self._settings.host}")
        log.info("agent of %s is up", self._settings.host)
        self.heap.wake()
        waiting = asyncio.create_task(stopped.wait(), name="wait for the end")
        try:
            done, _ = await asyncio.wait({waiting, *loops[:2]}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()  # a loop that ends by itself is a bug: end with it, and be restarted
            if self.logind.preparing or await systemd.host_goes_down(self.host.shell):
                await self.host_down.begin(self._settings.shutdown.seconds, "systemd stops everything")
        finally:
            systemd.notify("STOPPING=1")
            await self._close([waiting, *loops])

    async def _close(self, loops: list[asyncio.Task[object]]) -> None:
        """Moves first, while their doors are still open; then the doors."""
        await self.host_down.close()
        await self.homecoming.close()
        await self.evacuations.close()
        await self.sleepers.close()
        await self.vault.close()
        await self.sources.close()
        await self.targets.close()
        await self._server.close()
        await self._http.close()
        await self.broker.close()
        for task in (*loops, *self._noted):
            task.cancel()
        await asyncio.gather(*loops, *self._noted, return_exceptions=True)
        await self.kept.close()
        await self.natives.close()
        await self.host.docker.close()
        await self.host.journal.close()
        log.info("agent of %s has stopped", self._settings.host)

    async def _recover(self) -> None:
        """Take up every migration that the journal has open, each in a task of its own."""
        for entry in await self.host.journal.unfinished():
            log.warning("%s was %s as %s when the agent ended", entry.id, entry.phase, entry.role)
            try:
                (self.sources if entry.role is Role.SOURCE else self.targets).recover(entry)
            except Exception:
                log.exception("%s can't be taken up: its record is not understood", entry.id)
        try:
            await self.host.journal.prune()
            await self.dispatcher.recover()
        except Exception:
            log.exception("not all that was left of the agent before this one could be taken up")

    async def _watchdog(self) -> None:
        seconds = systemd.watchdog_seconds()
        while seconds is not None:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(seconds)


async def _main(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    agent = Agent(settings)
    loop.add_signal_handler(signal.SIGHUP, agent.certificates.look_now)
    await agent.run(stopped)


def main(settings_file: Path = config.DEFAULT_FILE, verbose: int = 0) -> int:
    """Run the agent of this host; the exit code."""
    try:
        settings = config.load(settings_file)
    except ValueError as error:
        print(f"{settings_file}: {error}", file=sys.stderr)
        return 2
    for name in [
        name for name in os.environ if name.upper() == PASSWORD
    ]:  # not for runc, CRIU, and what else is started
        del os.environ[name]
    os.umask(0o077)  # also where the service's does not say so
    set_up_logging(verbose, as_json=settings.log_json)
    one_arena()
    try:
        uvloop.run(_main(settings))
    except (OSError, AgentError) as error:
        log.error("the agent can't run: %s", error)
        return 1
    return 0
