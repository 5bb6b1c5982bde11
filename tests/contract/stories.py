"""A host that only tells stories: the real broker door, and moves that happen on paper. For controllers' tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agent.base import config
from agent.base.errors import Refused, RestoreFailed
from agent.doors.mqtt import Answer, Broker
from protocol import topics
from protocol.base import new_migration_id, utc_now
from protocol.commands import Cancel, Command, ListMigrations, Migrate, OpenMigration, Reply, ReplyKind, Resolve
from protocol.errors import ErrorCode, ErrorInfo
from protocol.status import (
    ContainerStatus,
    Engine,
    Event,
    HostStatus,
    MigrationReport,
    MigrationStatus,
    Part,
    Phase,
    PhaseTime,
)

STORY = (
    Phase.PLANNED,
    Phase.RESERVED,
    Phase.COPYING,
    Phase.FROZEN,
    Phase.PREPARED,
    Phase.COMMITTED,
    Phase.RUNNING,
    Phase.DONE,
)


def container(host: str, name: str, number: int = 1, state: str = "running", **more: Any) -> ContainerStatus:
    identity = f"{number:02x}" * 32
    return ContainerStatus(host=host, id=identity, name=name, image="busybox:latest", state=state, **more)


def engine(**more: Any) -> Engine:
    return Engine(
        **{
            "docker": "28.5.2",
            "api": "1.51",
            "runc": "1.3.6",
            "criu": "4.2.1",
            "criu_features": ["mem_dirty_track", "uffd-noncoop"],
            "storage_driver": "overlay2",
            "image_store": "containerd",
            "runtime_registered": True,
            **more,
        }
    )


@dataclass
class StoryHost:
    """One host. `pace` is how long each phase takes; `fails_at` takes a move back there; `hold` stops it there."""

    name: str
    settings: config.Broker
    containers: Sequence[ContainerStatus] = ()
    pace: float = 0.0
    fails_at: Phase | None = None
    hold: Phase | None = None
    lose_replies: bool = False
    doubt: str = ""
    engine: Engine = field(default_factory=engine)
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = Broker(self.settings, self.name, self._handle)
        self.go = asyncio.Event()
        self.held = asyncio.Event()
        self.open: dict[str, OpenMigration] = {}
        self._answers: dict[str, list[Answer]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["StoryHost"]:
        task = asyncio.create_task(self.broker.run())
        self.say()
        try:
            async with asyncio.timeout(10):
                await self.broker.until_connected()
            assert await self.broker.flush(10)
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def say(self) -> None:
        status = HostStatus(
            host=self.name,
            online=True,
            at=utc_now(),
            agent_version="0.1.0",
            engine=self.engine,
            kernel="6.12.48+deb13-amd64",
            machine="x86_64",
            memory_bytes=16 << 30,
            memory_free_bytes=9 << 30,
            running=len(self.containers),
        )
        self.broker.publish_retained(topics.host_status(self.name), status)
        for one in self.containers:
            self.broker.publish_retained(topics.container_status(self.name, one.id), one)

    def event(self, kind: str, **detail: str) -> None:
        event = Event(host=self.name, at=utc_now(), kind=kind, container="web", detail=detail)
        self.broker.publish(topics.events(self.name), event)

    def reply(self, command: Command, kind: ReplyKind, **more: Any) -> Reply:
        return Reply(kind=kind, host=self.name, command=command.id, at=utc_now(), **more)

    async def _handle(self, command: Command, answer: Answer) -> None:
        if command.id in self._answers:  # the same command again
            self._answers[command.id].append(answer)
            await answer(self.reply(command, ReplyKind.ACCEPTED, migration=next(iter(self.open), None)))
            return
        self.commands.append(command)
        match command:
            case Migrate():
                await self._migrate(command, answer)
            case Cancel(migration=migration) if migration not in self.open:
                raise Refused(ErrorCode.TOO_LATE, f"{migration} is decided", hint="it can't be taken back")
            case Resolve() | Cancel():
                await answer(self.reply(command, ReplyKind.FINISHED, migration=command.migration))
            case ListMigrations():
                await answer(self.reply(command, ReplyKind.FINISHED, migrations=tuple(self.open.values())))
            case _:
                await answer(self.reply(command, ReplyKind.FINISHED, agent_version="0.1.0"))

    async def _migrate(self, command: Migrate, answer: Answer) -> None:
        found = [one for one in self.containers if command.container in (one.name, one.id)]
        if not found:
            raise Refused(ErrorCode.NO_SUCH_CONTAINER, f"there is no container {command.container} on {self.name}")
        if command.to == self.name:
            raise Refused(ErrorCode.SAME_HOST, f"{command.container} is on {self.name} already")
        move = Move(self, command, found[0])
        self.open[move.id] = OpenMigration(
            id=move.id,
            role="source",
            container=found[0].name,
            peer=command.to,
            phase="planned",
            since=move.began,
            doubt=self.doubt,
        )
        self._answers[command.id] = [answer]
        await answer(self.reply(command, ReplyKind.ACCEPTED, migration=move.id))
        last = await move.run()
        del self.open[move.id]
        move.say(last, ended=True)
        if not self.lose_replies:
            kind = ReplyKind.FAILED if move.error else ReplyKind.FINISHED
            for each in self._answers.pop(command.id):
                await each(self.reply(command, kind, migration=move.id, error=move.error, report=move.report()))


class Move:
    """One move on paper."""

    def __init__(self, host: StoryHost, command: Migrate, subject: ContainerStatus) -> None:
        self.id = new_migration_id()
        self.began = utc_now()
        self.error: ErrorInfo | None = None
        self._host = host
        self._command = command
        self._subject = subject
        self._start = asyncio.get_running_loop().time()
        self._sequence = 0
        self._phases: list[PhaseTime] = []
        self._total, self._sent = 120 << 20, 0

    async def run(self) -> Phase:
        for phase in STORY:
            if phase is self._host.fails_at:
                self.error = FAILURE.info()
                return self._enter(Phase.ROLLED_BACK)
            self._enter(phase)
            if phase is Phase.DONE:
                break
            self.say(phase)
            if phase is self._host.hold:
                self._host.held.set()
                await self._host.go.wait()
            await self._work(phase)
        return Phase.DONE

    async def _work(self, phase: Phase) -> None:
        steps = 10 if phase in (Phase.COPYING, Phase.FROZEN) else 1
        for _ in range(steps):
            await asyncio.sleep(self._host.pace / steps)
            if steps > 1:
                self._sent += self._total // 20
                self.say(phase)

    def _enter(self, phase: Phase) -> Phase:
        self._phases.append(PhaseTime(phase=phase, at_ms=self._elapsed()))
        return phase

    def _elapsed(self) -> float:
        return round((asyncio.get_running_loop().time() - self._start) * 1000, 3)

    def report(self) -> MigrationReport:
        at = {one.phase: one.at_ms for one in self._phases}
        return MigrationReport(
            phases=tuple(self._phases),
            parts=(
                Part(name="layers", bytes=30 << 20, frozen=False, ms=10),
                Part(name="images", bytes=90 << 20, frozen=True, ms=10),
            ),
            blackout_ms=at[Phase.RUNNING] - at[Phase.FROZEN] if Phase.RUNNING in at else None,
            total_ms=self._elapsed(),
            freeze_ms=2.1,
            dump_ms=121.0,
            restore_ms=180.4,
            strategy="cold",
            tcp="keep",
            notes=("the anonymous volume at /data has another name there",),
        )

    def say(self, phase: Phase, *, ended: bool = False) -> None:
        self._sequence += 1
        status = MigrationStatus(
            id=self.id,
            container=self._subject.name,
            container_id=self._subject.id,
            source=self._host.name,
            target=self._command.to,
            phase=phase,
            sequence=self._sequence,
            started_at=self.began,
            at=utc_now(),
            strategy="cold",
            part="" if ended else "images",
            bytes_sent=self._sent,
            bytes_total=self._total,
            rate=90e6,
            eta_s=(self._total - self._sent) / 90e6,
            error=self.error,
            report=self.report() if ended else None,
        )
        self._host.broker.publish_retained(topics.migration_status(self.id, self._host.name), status)


FAILURE = RestoreFailed(
    "runc restore ended with code 1: criu failed",
    detail=("(00.123) Error (criu/mount.c:1): can't mount", "(00.124) Error: restoring FAILED"),
    hint="see restore.log",
)
