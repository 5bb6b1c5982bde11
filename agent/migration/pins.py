"""Which wishes for addresses are a move's doing: `docker inspect` shows them as if the user had made them.

One small file for each container that has come to this host, for when it moves on: what the user left to Docker may
become something else where it is not to be had.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

FOLDER = "pinned"

Pinned = Mapping[str, Sequence[str]]
"""By network, the keys of the wishes."""


def remember(state: Path, container_id: str, pinned: Pinned, known: Collection[str]) -> None:
    """Write them down, and forget those of containers that are no longer known here."""
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.stem not in known:
            path.unlink(missing_ok=True)
    if pinned:
        (folder / f"{container_id}.json").write_text(json.dumps({name: list(keys) for name, keys in pinned.items()}))


def recall(state: Path, container_id: str) -> Pinned:
    """What was written down of it; nothing for one that was made here."""
    try:
        found: dict[str, list[str]] = json.loads((state / FOLDER / f"{container_id}.json").read_text())
    except (OSError, ValueError):
        return {}
    return found
