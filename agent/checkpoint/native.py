"""Docker's own checkpoints: where they work, and the proof that a start from one was a restore and no cold start."""

from pathlib import Path

from agent.base.errors import Refused
from agent.base.protobuf import fields
from protocol.errors import ErrorCode

BROKEN_FROM = 28
MM = "mm-1.img"
START_STACK = 5
"""In CRIU's image of an address space (images/mm.proto)."""
STAT_START_STACK = 28
"""In /proc/PID/stat, counted from 1 (proc(5))."""
OTHER_WAY = "`transship checkpoint` and `transship restore` work with it"


def check_engine(version: str, *, experimental: bool) -> None:
    """Whether this daemon can start from its own checkpoints.

    Raises:
        Refused: it can't, or does not offer it; names the way that works.

    """
    if int(version.partition(".")[0]) >= BROKEN_FROM:
        raise Refused(
            ErrorCode.INCOMPATIBLE,
            f"Docker {version} can't start from its own checkpoints: from {BROKEN_FROM} on it attaches the network to "
            "a process that is not there yet (moby#50750)",
            hint=OTHER_WAY,
        )
    if not experimental:
        raise Refused(
            ErrorCode.INCOMPATIBLE,
            "this dockerd does not offer its checkpoint API",
            hint=f'set "experimental": true in daemon.json; or without: {OTHER_WAY}',
        )


def start_stack_of(image: bytes) -> int | None:
    """Where the dumped process has its stack; None if the image is not understood."""
    at = 4 if int.from_bytes(image[:4], "little") != 0x54564319 else 8
    size = int.from_bytes(image[at : at + 4], "little")
    try:
        found = fields(image[at + 4 : at + 4 + size]).get(START_STACK)
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, int) else None


def is_restored(stat: str, image: bytes) -> bool:
    """Whether the process of this /proc/PID/stat is the one that was dumped: the kernel gives each new one a stack
    somewhere else, and CRIU puts a restored one's where it was.
    """
    rest = stat.rpartition(")")[2].split()
    wanted = start_stack_of(image)
    return wanted is not None and int(rest[STAT_START_STACK - 3]) == wanted


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text()
