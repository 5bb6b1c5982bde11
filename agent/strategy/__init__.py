"""How memory gets across, one module a strategy. A strategy sends; it does not freeze, decide or undo."""

from typing import Protocol

from agent.doors.peer_client import PeerClient
from agent.migration.host import Host
from agent.migration.run import Run
from agent.migration.subject import Subject
from protocol.peer import FileHash, SentPart


class Strategy(Protocol):
    """One way for the memory."""

    name: str

    async def copy_while_running(self, run: Run, subject: Subject, host: Host, peer: PeerClient) -> None:
        """Whatever can be sent before the freeze."""

    async def dump_and_send(
        self, run: Run, subject: Subject, host: Host, peer: PeerClient
    ) -> tuple[SentPart, tuple[FileHash, ...]]:
        """The container is frozen: dump it and send the images; what they are, for the manifest.

        Raises:
            DumpFailed: with CRIU's own error lines. The tasks are frozen as before.
            TransferFailed, CorruptPart: the link broke, or the peer found something wrong.

        """

    async def release(self, run: Run, host: Host) -> None:
        """Make sure that no image, mount or process of this migration is left on the source."""
