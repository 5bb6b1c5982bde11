"""Where containers are at home that an evacuation has brought here: one small file each, until they move on.

By this `transship return` finds them. Whoever moves one by hand gives it a new place, and it is at home there.
"""

from pathlib import Path

from agent.base import durable

FOLDER = "homes"


def remember(state: Path, container_id: str, home: str) -> None:
    """Durable when this returns."""
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    durable.write(folder / container_id, home)


def of(state: Path, container_id: str) -> str:
    """Where it is at home, if not here."""
    try:
        return (state / FOLDER / container_id).read_text()
    except OSError:
        return ""


def forget(state: Path, container_id: str) -> None:
    """It is gone."""
    (state / FOLDER / container_id).unlink(missing_ok=True)
