"""How memory gets across, one module a strategy. A strategy sends; it does not freeze, decide or undo."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.base.shell import Shell
from agent.checkpoint.criu import CriuOptions
from agent.doors.peer_client import PeerClient
from agent.strategy.convergence import Wishes
from protocol.peer import ImageFile, SentPart
from protocol.status import Round

FilesAgain = Callable[[], Coroutine[Any, Any, int]]
"""Another pass over the files while the container runs; the bytes that it has sent."""


class Progress(Protocol):
    """Who is told how the sending goes, and notes the figures: a migration's run."""

    reason: str
    """Why memory goes as it does."""

    @property
    def figures(self) -> dict[str, float]: ...
    @property
    def paced(self) -> bool: ...
    def sending(self, part: str) -> None: ...
    def sent(self, count: int) -> None: ...
    async def pace(self, count: int, *, compressed: bool = False) -> None: ...
    def part_done(self, name: str, size: int, began: float, *, frozen: bool) -> None: ...
    async def round_done(self, done: Round) -> None: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """A container's memory, about to go to a peer."""

    migration: str
    container_id: str
    pid: int
    resident_bytes: int
    options: CriuOptions
    dump_seconds: float
    """The deadline of the dump."""
    ready_seconds: float
    """That of what is made ready for it, while the container runs."""
    shell: Shell
    peer: PeerClient
    progress: Progress
    written: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when CRIU has written the last image, by a strategy that needs the tasks no longer then."""
    wishes: Wishes = field(default_factory=Wishes)


class Strategy(Protocol):
    """One way for the memory."""

    name: str
    lazy: bool
    """Whether memory follows when it runs at the target; known at the latest by the end of `copy_while_running`."""

    @property
    def sent(self) -> tuple[SentPart, ...]:
        """What went before the freeze, in rounds."""

    async def copy_while_running(self, memory: Memory, again: FilesAgain) -> None:
        """Whatever can be sent, or made ready, before the freeze.

        Raises:
            NotConverging: what was asked for can't be had.

        """

    async def dump_and_send(self, memory: Memory) -> tuple[SentPart, tuple[ImageFile, ...]]:
        """The container is frozen: dump it and send the images; what they are, for the manifest.

        Raises:
            DumpFailed: with CRIU's own error lines. The tasks are frozen as before.
            TransferFailed, CorruptPart: the link broke, or the peer found something wrong.

        """

    async def carry(self, memory: Memory) -> None:
        """What goes on beside the story, from its beginning to its end; an end of it is no end of the story."""

    async def serves(self, migration: str) -> bool:
        """Whether what the running container lacks, or will, can be had here."""

    async def fails_to_serve(self, migration: str) -> None:
        """Wait until that can't be had any more, while nothing is decided; or return, where nothing more is needed.

        Raises:
            DumpFailed: it can't.

        """

    async def stop_serving(self, shell: Shell, migration: str) -> None:
        """Make sure that nothing of ours holds the tasks any more, so that they may be thawed or ended.

        Raises:
            StepFailed: CRIU does not let them go, yet.

        """

    async def release(self, shell: Shell, migration: str) -> None:
        """Make sure that no image, mount or process of this migration is left on the source."""
