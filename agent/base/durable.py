"""What outlives a crash of the host: a file is there only when its folder's entry of it is on the disk, too."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Put a text in place of a file, in one step. Durable when this returns; until then what was there is.

    Raises:
        OSError: it can't be written; what was there is.

    """
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    publish(part, path)


def publish(part: Path, path: Path) -> None:
    """Give a file that is on the disk its name there, durably."""
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
