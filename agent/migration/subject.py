"""The container that is to be moved, as its source knows it by the end of the preflight. Facts only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from agent.checkpoint.criu import GHOST_LIMIT, CriuOptions
from agent.checkpoint.freezer import Cgroup
from agent.doors.peer_client import PeerClient
from agent.migration.host import Host
from agent.migration.run import Run
from agent.prework.tree import Source
from agent.strategy import Memory
from agent.strategy.convergence import Wishes
from agent.strategy.postcopy import PostCopy
from agent.strategy.precopy import PreCopy
from protocol.commands import SourcePolicy
from protocol.errors import Reason
from protocol.peer import Offer


@dataclass(frozen=True, slots=True)
class Tree:
    """A file tree that travels: the writable layer (`root`), a volume (`volume:NAME`) or a bind mount (`bind:N`)."""

    name: str
    source: Source

    @property
    def bind(self) -> bool:
        return self.name.startswith("bind:")


@dataclass(frozen=True, slots=True)
class Subject:
    """One running container."""

    id: str
    name: str
    pid: int
    cgroup: Cgroup
    restart_policy: dict[str, object]
    auto_remove: bool
    offer: Offer
    trees: tuple[Tree, ...]
    data_root: Path
    """dockerd's folder, where the container's log files are."""
    after: SourcePolicy
    memory_bytes: int
    started_at: str = ""
    """Of the container, as Docker writes it; not in the journal."""
    watched: tuple[str, ...] = ()
    """Paths under an inotify watch; CRIU finds them only if told."""
    against_precopy: tuple[Reason, ...] = ()
    """What stands against that strategy on this host."""
    notes: tuple[str, ...] = ()
    """What will not be exactly as before, each a sentence."""

    def going_by(self, strategy: str, home: str | None = None) -> Self:
        """The same, with the strategy that was chosen for it in the offer, and where it returns to."""
        way = {"lazy": strategy == PostCopy.name, "rounds": strategy == PreCopy.name}
        return replace(self, offer=self.offer.model_copy(update={**way, "home": home}))

    def followed(self) -> Self:
        """The same, of which memory follows when it runs."""
        return replace(self, offer=self.offer.model_copy(update={"lazy": True}))

    @property
    def options(self) -> CriuOptions:
        return CriuOptions(self.offer.tcp, ghost_limit=GHOST_LIMIT + self.memory_bytes, watched=self.watched)

    def memory(self, run: Run, host: Host, peer: PeerClient) -> Memory:
        """What a strategy needs of it all."""
        request = run.record.get("request") or {}
        return Memory(
            migration=run.id,
            container_id=self.id,
            pid=self.pid,
            resident_bytes=self.memory_bytes,
            options=self.options,
            dump_seconds=host.settings.deadlines.dump,
            ready_seconds=host.settings.deadlines.stage,
            shell=host.shell,
            peer=peer,
            progress=run,
            wishes=Wishes(request.get("max_blackout_ms"), request.get("throttle") or 0, run.may_follow),
        )

    def to_record(self) -> dict[str, Any]:
        """What a restarted agent needs of it, for the journal."""
        return {
            "pid": self.pid,
            "cgroup": [str(self.cgroup.path), self.cgroup.version],
            "restart_policy": dict(self.restart_policy),
            "auto_remove": self.auto_remove,
            "offer": self.offer.model_dump(mode="json"),
            "data_root": str(self.data_root),
            "memory_bytes": self.memory_bytes,
        }


def from_record(record: Mapping[str, Any]) -> Subject:
    """The subject of a migration found in the journal; its trees and logs are of no use any more."""
    offer = Offer.model_validate(record["offer"])
    path, version = record["cgroup"]
    return Subject(
        id=offer.container_id,
        name=offer.container,
        pid=record["pid"],
        cgroup=Cgroup(Path(path), version),
        restart_policy=record["restart_policy"],
        auto_remove=record["auto_remove"],
        offer=offer,
        trees=(),
        data_root=Path(record["data_root"]),
        after=offer.after,
        memory_bytes=record["memory_bytes"],
    )
