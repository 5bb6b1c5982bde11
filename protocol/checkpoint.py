"""Checkpoints as controllers see them."""

from typing import Annotated

from pydantic import StringConstraints

from protocol.base import HostName, Timestamp, WireModel

CheckpointId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]

PipeId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""A folder below /run/transship/pipes on the agent's host, made by a controller on that host: archives go through the
fifos in it, and no path is ever named by a command.
"""

STORE = r"^(oci:[A-Za-z0-9][A-Za-z0-9._:/-]{0,250})?$"
StoreRef = Annotated[str, StringConstraints(pattern=STORE)]
"""Empty: the host's own folder. `oci:REGISTRY/NAME`: a repository in a registry."""


NativeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
"""Of a checkpoint of Docker's own, which is a folder's name there."""


class CheckpointInfo(WireModel):
    """One checkpoint that was taken."""

    id: CheckpointId
    container: str
    host: HostName
    at: Timestamp
    place: str
    """Where it lies on the host, or in which registry; `-` where it went through a pipe."""
    bytes: int
    """Of the archive as it lies there."""
    tasks: int = 0
    frozen_ms: float = 0
    image: str = ""
    left_running: bool = True
    encrypted: bool = False
    pinned: bool = False
    notes: tuple[str, ...] = ()
