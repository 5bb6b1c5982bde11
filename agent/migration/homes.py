"""Where containers are at home that an evacuation has brought here: one small file each, until they move on.

By this `transship return` finds them. Whoever moves one by hand gives it a new place, and it is at home there.
"""

import os
from pathlib import Path

from agent.base.durable import publish

FOLDER = "homes"


def remember(state: Path, container_id: str, home: str) -> None:
    """Durable when this returns."""
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{container_id}.part"
    with part.open("w") as file:
        file.write(home)
        file.flush()
        os.fsync(file.fileno())
    publish(part, folder / container_id)


def of(state: Path, container_id: str) -> str:
    """Where it is at home, if not here."""
    try:
        return (state / FOLDER / container_id).read_text()
    except OSError:
        return ""


def forget(state: Path, container_id: str) -> None:
    """It is gone."""
    (state / FOLDER / container_id).unlink(missing_ok=True)


def known(state: Path) -> list[str]:
    """The ids of all that are written down, for who wants to see whether they are still there."""
    folder = state / FOLDER
    return sorted(path.name for path in folder.iterdir() if not path.suffix) if folder.is_dir() else []
