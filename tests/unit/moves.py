"""Both sides of a move without a host: fake doors, and beside them the real Sources, Targets, Run and Journal."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self, cast

import pytest

from agent.base.config import Settings
from agent.base.errors import DockerFailed, TransferFailed
from agent.base.shell import Shell
from agent.checkpoint.freezer import Cgroup
from agent.doors import docker_model
from agent.doors.compression import Compressed
from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from agent.migration.host import Host
from agent.migration.journal import Entry, Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from agent.migration.subject import Subject
from agent.network import lock, quiet
from protocol.commands import Migrate, SourcePolicy
from protocol.peer import (
    Answer,
    Created,
    DecisionKind,
    ImageFile,
    Manifest,
    Offer,
    Prepared,
    Probed,
    Running,
    SentPart,
    Staged,
)
from protocol.status import Engine, Phase
from tests.unit.faults import FOR_EVER, WATCHDOG_SECONDS, Faults

__all__ = ["FOR_EVER", "WATCHDOG_SECONDS", "Faults"]  # with what is here

SOURCE, TARGET = "alpha", "beta"
ID, CONTAINER = "m-0123456789abcdef", "c" * 64
ENGINE = Engine(docker="28.5.2")
THEN = "2025-01-01T00:00:00+00:00"


def settings(host: str = SOURCE, **deadlines: float) -> Settings:
    return Settings.model_validate({"host": host, "deadlines": {"ask_again": 0.002, "freeze": 1.0, **deadlines}})


def offer(**changes: Any) -> Offer:
    return Offer.model_validate(
        {
            "migration": ID,
            "source": SOURCE,
            "target": TARGET,
            "container": "web",
            "container_id": CONTAINER,
            "create": {},
            "restart_policy": {"Name": "always"},
            "image": {"name": "image", "id": "sha256:1", "diff_ids": ()},
            "tcp": "close",
            "memory_bytes": 1,
            "files_bytes": 1,
            "tasks": 1,
            "engine": ENGINE,
            "kernel": "6.1",
            "machine": "x86_64",
            **changes,
        }
    )


def request() -> Migrate:
    return Migrate.model_validate({"id": "c-1", "container": "web", "to": TARGET})


def entry(role: Role, phase: Phase, record: dict[str, Any], migration: str = ID) -> Entry:
    peer = TARGET if role is Role.SOURCE else SOURCE
    return Entry(migration, role, phase, "web", peer, THEN, THEN, record)


def of_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for a container here shares the network of the tests, and is to count as if it had its own."""
    for module in (lock, quiet):
        monkeypatch.setattr(module, "is_ours", lambda pid: False)


def subject(folder: Path, pid: int, **changes: Any) -> Subject:
    """A container whose cgroup is a folder: what is written to it can be read there."""
    made = offer(**changes)
    return Subject(
        id=CONTAINER,
        name="web",
        pid=pid,
        cgroup=cgroup(folder, pid),
        restart_policy=dict(made.restart_policy),
        auto_remove=False,
        offer=made,
        trees=(),
        data_root=folder,
        after=SourcePolicy.REMOVE,
        memory_bytes=1,
        started_at="first",
    )


def cgroup(folder: Path, *pids: int) -> Cgroup:
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.procs").write_text("\n".join(str(pid) for pid in pids if pid))
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (folder / "cgroup.freeze").write_text("0")
    return Cgroup(folder, 2)


def is_frozen(folder: Path) -> bool:
    return (folder / "cgroup.freeze").read_text() == "1"


class FakeDocker(Faults):
    """One container, and what becomes of it."""

    def __init__(self, *, pid: int = 1, policy: str = "always") -> None:
        super().__init__()
        self.there = True
        self.running = True
        self.exit_code = 0
        self.started_at = "first"
        self.paused = False
        self.pid = pid
        self.policy = policy
        self.removed_volumes: list[str] = []

    def exits(self, code: int) -> None:
        self.running, self.exit_code = False, code

    async def _asked(self, name: str) -> None:
        await self.call(name, lambda: DockerFailed(f"{name}: dockerd is away"))

    def container(self) -> Container:
        state = {
            "Status": "running" if self.running else "exited",
            "Running": self.running,
            "Pid": self.pid if self.running else 0,
            "ExitCode": self.exit_code,
            "StartedAt": self.started_at,
            "Paused": self.paused,
        }
        host = {"RestartPolicy": {"Name": self.policy}}
        return docker_model.container(
            {"Id": CONTAINER, "Name": "/web", "State": state, "Config": {}, "HostConfig": host, "Image": "sha256:1"}
        )

    async def find(self, ref: str) -> Container | None:
        await self._asked("find")
        return self.container() if self.there else None

    async def set_restart_policy(self, ref: str, policy: dict[str, str]) -> None:
        await self._asked("policy")
        self.policy = policy["Name"]

    async def start(self, ref: str) -> None:
        await self._asked("start")
        self.running, self.started_at = True, "again"

    async def stop(self, ref: str, signal: str = "", seconds: int | None = None) -> None:
        await self._asked("stop")
        self.exits(137)

    async def unpause(self, ref: str) -> None:
        await self._asked("unpause")
        self.paused = False

    async def remove(self, ref: str, **_: bool) -> None:
        await self._asked("remove")
        self.there = self.running = False

    async def remove_volume(self, name: str) -> None:
        await self._asked("remove_volume")
        self.removed_volumes.append(name)


class FakeShell(Faults):
    """Commands that do nothing, by their label."""

    async def run(self, *argv: str, label: str, **_: Any) -> None:
        await self.call(label, lambda: DockerFailed(f"{label}: it can't be run"))

    done_here = run


class FakeJournal(Journal):
    """The real one; its writes can fail or wait, by the phase that is written, and be waited for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.faults = Faults()
        self.written: list[str] = []

    async def put(self, entry: Entry, *, with_next: bool = False) -> None:
        await self.faults.call(str(entry.phase), lambda: OSError("no room on the journal's disk"))
        await super().put(entry, with_next=with_next)
        self.written.append(str(entry.phase))
        self.faults._look()

    async def until(self, phase: Phase) -> None:
        await self.faults.until(lambda: str(phase) in self.written)

    @property
    def phases(self) -> list[str]:
        """As they were written, each once in a row."""
        return [phase for number, phase in enumerate(self.written) if number == 0 or self.written[number - 1] != phase]


def host(name: str, docker: FakeDocker, shell: FakeShell, journal: Journal) -> Host:
    return Host(settings(name), cast("Docker", docker), cast("Shell", shell), journal)


class FakePeer(Faults):
    """A target that does all that it is asked."""

    name = TARGET
    answer: Answer | None = None
    compresses = False

    def __init__(self) -> None:
        super().__init__()
        self.compressed = Compressed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def url(self) -> str:
        return "https://beta:7443"

    async def _asked(self, name: str) -> None:
        await self.call(name, lambda: TransferFailed(f"{name}: the link broke"))

    async def _takes(self, name: str, chunks: AsyncIterator[bytes]) -> SentPart:
        await self._asked(name)
        size = sum([len(chunk) async for chunk in chunks])
        return SentPart(name=name, sha256="", bytes=size)

    async def probe(self, migration: str) -> Probed:
        await self._asked("probe")
        return Probed(rate=1e9)

    async def offer(self, offer: Offer) -> Answer:
        await self._asked("offer")
        return Answer(missing_layers=(), image_wanted=False, engine=ENGINE)

    async def create(self, migration: str) -> Created:
        await self._asked("create")
        return Created(container_id="d" * 64)

    async def send_log(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._takes("log", chunks)

    async def stage(self, migration: str) -> Staged:
        await self._asked("stage")
        return Staged(network_attached_early=False)

    async def send_printed(self, migration: str, chunks: AsyncIterator[bytes]) -> SentPart:
        return await self._takes("printed", chunks)

    async def prepare(self, migration: str, manifest: Manifest) -> Prepared:
        await self._asked("prepare")
        return Prepared(tasks=manifest.tasks, restore_ms=1.0, phases=())

    async def go(self, migration: str) -> Running:
        await self._asked("go")
        return Running(phases=())

    async def warm_up(self, migration: str) -> None:
        """Connections are not its business."""

    async def alive(self, migration: str) -> None:
        await self._asked("alive")

    async def forget(self, migration: str) -> None:
        await self._asked("forget")

    async def discard(self, migration: str) -> None:
        await self._asked("discard")


class FakeStrategy:
    """Sends nothing. `dump` is called in the middle of the blackout."""

    name = "cold"
    lazy = False
    sent = ()
    dump = staticmethod(lambda: None)

    async def copy_while_running(self, *_: object) -> None:
        pass

    async def dump_and_send(self, *_: object) -> tuple[SentPart, tuple[ImageFile, ...]]:
        self.dump()
        return SentPart(name="images", sha256="", bytes=0), ()

    async def carry(self, *_: object) -> None:
        pass

    async def serves(self, *_: object) -> bool:
        return False

    async def fails_to_serve(self, *_: object) -> None:
        pass

    async def stop_serving(self, *_: object) -> None:
        pass

    async def release(self, *_: object) -> None:
        pass


class FakeWatching:
    """What was said of a move."""

    def __init__(self) -> None:
        self.decisions: list[DecisionKind] = []
        self.errors: list[str] = []

    async def changed(self, run: Run, error: Any) -> None:
        if error is not None:
            self.errors.append(f"{run.phase}: {error.code}")

    async def decided(self, run: Run, decision: DecisionKind) -> None:
        self.decisions.append(decision)


class FakeAsking:
    """Two ways to a decision, of which the link may be down."""

    def __init__(self) -> None:
        self.source = Faults()
        self.said = DecisionKind.PENDING
        self.retained = DecisionKind.PENDING

    async def ask_peer(self, source: str, migration: str) -> DecisionKind:
        await self.source.call("decision", lambda: TransferFailed("the source does not answer"))
        return self.said

    async def read_retained(self, source: str, migration: str) -> DecisionKind:
        return self.retained
