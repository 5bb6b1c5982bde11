"""What outlives a crash of the host: a file is there only when its folder's entry of it is on the disk, too."""

import os
from pathlib import Path


def publish(part: Path, path: Path) -> None:
    """Give a file that is on the disk its name there, durably."""
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
