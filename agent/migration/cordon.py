"""Whether this host takes containers: one that is to be empty does not. A small file that outlives agent and reboot."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.base import durable
from protocol import reasons
from protocol.errors import Reason, Why

FILE = "cordoned.json"


@dataclass(frozen=True, slots=True)
class Cordon:
    """Why, and since when."""

    why: str
    at: str
    boot: str = ""
    """The boot for which it holds; empty: until somebody lifts it."""


def put(state: Path, cordon: Cordon) -> None:
    """Durable when this returns."""
    durable.write(state / FILE, json.dumps(asdict(cordon)))


def lift(state: Path) -> None:
    (state / FILE).unlink(missing_ok=True)


def find(state: Path) -> Cordon | None:
    """The one that holds now.

    A file that can't be read counts: to take nothing is the safe side of a mistake.
    """
    try:
        found = Cordon(**json.loads((state / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return Cordon(f"{state / FILE} can't be read", "")
    return found if found.boot in ("", boot()) else None


def boot() -> str:
    """Which boot of the host this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def against(state: Path, host: str) -> tuple[Reason, ...]:
    """What stands against an offer."""
    found = find(state)
    if found is None:
        return ()
    hint = f"`transship uncordon {host}`, if it is to take containers again"
    return (reasons.against(Why.CORDONED, f"it is cordoned: {found.why}", hint),)
