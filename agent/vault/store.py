"""The host's folder of checkpoints: what is in it, what is pinned, and what the retention removes.

checkpoint-NAME-ID.tar[.zst|.gz][.sealed]    one archive
.ID.json                                     what is known of it without opening it
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from agent.archive import crypt
from agent.archive.pipeline import Compression
from agent.base import config
from agent.base.errors import Refused
from protocol.checkpoint import CheckpointInfo
from protocol.errors import ErrorCode

NAME = re.compile(r"checkpoint-.+-([0-9a-f]{12})\.tar(\.zst|\.gz)?(\.sealed)?")
ENDINGS: dict[Compression, str] = {"zstd": ".zst", "gzip": ".gz", "none": ""}
DAY_SECONDS = 86400.0


class Store:
    """One folder. Every call blocks only for small files."""

    def __init__(self, settings: config.Checkpoints) -> None:
        self._settings = settings
        self._folder = settings.folder

    def key(self) -> bytes | None:
        """What seals and opens the archives here.

        Raises:
            Refused: there is to be one, and it can't be read.

        """
        if self._settings.key_file is None:
            return None
        try:
            return crypt.check_key(self._settings.key_file.read_bytes())
        except OSError as error:
            raise Refused(
                ErrorCode.BAD_COMMAND,
                f"the key {self._settings.key_file} can't be read: {error.strerror}",
                hint="checkpoints.key_file in agent.toml names it",
            ) from None

    def new_file(self, container: str, checkpoint: str, compression: Compression) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sealed = ".sealed" if self._settings.key_file is not None else ""
        return self._folder / f"checkpoint-{container}-{checkpoint}.tar{ENDINGS[compression]}{sealed}"

    def note(self, info: CheckpointInfo) -> None:
        path = self._folder / f".{info.id}.json"
        part = path.with_suffix(".part")
        with part.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(info.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)

    def forget(self, checkpoint: str) -> None:
        """Make sure that there is no note of it: it is not listed then."""
        (self._folder / f".{checkpoint}.json").unlink(missing_ok=True)

    def path_of(self, checkpoint: str) -> Path:
        """Where the archive is.

        Raises:
            Refused: there is none such.

        """
        for found, path in self._archives():
            if found == checkpoint:
                return path
        raise Refused(
            ErrorCode.NO_SUCH_CHECKPOINT,
            f"there is no checkpoint {checkpoint} in {self._folder}",
            hint="`transship checkpoints` lists them",
        )

    def all(self) -> list[CheckpointInfo]:
        """What is here, oldest first. An archive without its note is not one that was completed here."""
        found = [info for checkpoint, path in self._archives() if (info := self._info(checkpoint, path)) is not None]
        return sorted(found, key=lambda info: info.at)

    def _archives(self) -> Iterator[tuple[str, Path]]:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if match := NAME.fullmatch(path.name):
                    yield match[1], path

    def _info(self, checkpoint: str, path: Path) -> CheckpointInfo | None:
        with contextlib.suppress(OSError, ValidationError):
            info = CheckpointInfo.model_validate_json((self._folder / f".{checkpoint}.json").read_text())
            return info.model_copy(update={"place": str(path), "bytes": path.stat().st_size})
        return None

    def pin(self, checkpoint: str, *, pinned: bool) -> CheckpointInfo:
        info = self._known(checkpoint).model_copy(update={"pinned": pinned})
        self.note(info)
        return info

    def remove(self, checkpoint: str, *, force: bool = False) -> None:
        """Remove one.

        Raises:
            Refused: it is not there, or pinned.

        """
        info = self._known(checkpoint)
        if info.pinned and not force:
            raise Refused(ErrorCode.BAD_COMMAND, f"{checkpoint} is pinned", hint="`--force` removes it all the same")
        self._remove(info)

    def _known(self, checkpoint: str) -> CheckpointInfo:
        path = self.path_of(checkpoint)
        info = self._info(checkpoint, path)
        if info is None:
            raise Refused(ErrorCode.NO_SUCH_CHECKPOINT, f"{path} was not completed")
        return info

    def _remove(self, info: CheckpointInfo) -> None:
        Path(info.place).unlink(missing_ok=True)
        self.forget(info.id)

    def sweep(self) -> None:
        """Remove what was begun before this agent was started: nothing in it can be complete."""
        if self._folder.is_dir():
            for path in self._folder.glob(".*.part"):
                path.unlink(missing_ok=True)
            there = {checkpoint for checkpoint, _ in self._archives()}
            for path in self._folder.glob(".*.json"):
                if path.stem.removeprefix(".") not in there:
                    path.unlink(missing_ok=True)

    # --- retention ---

    def retain(self) -> list[CheckpointInfo]:
        """Remove what the settings do not want kept; what that was."""
        doomed = too_many(self.all(), self._settings, time.time())
        for info in doomed:
            self._remove(info)
        return doomed

    def free_bytes(self) -> int:
        found = os.statvfs(self._folder if self._folder.exists() else self._folder.parent)
        return found.f_bavail * found.f_frsize


def too_many(found: list[CheckpointInfo], settings: config.Checkpoints, now: float) -> list[CheckpointInfo]:
    """What is to go, by count of each container, by age, then the oldest until the rest is small enough."""
    loose = [info for info in sorted(found, key=lambda info: info.at) if not info.pinned]
    doomed: list[CheckpointInfo] = []
    if settings.keep_count:
        of_each: dict[tuple[str, str], list[CheckpointInfo]] = {}
        for info in loose:
            of_each.setdefault((info.host, info.container), []).append(info)
        doomed += [info for each in of_each.values() for info in each[: -settings.keep_count]]
    if settings.keep_days:
        oldest = now - settings.keep_days * DAY_SECONDS
        doomed += [info for info in loose if info.at.timestamp() < oldest and info not in doomed]
    if settings.keep_bytes:
        left = [info for info in loose if info not in doomed]
        size = sum(info.bytes for info in found if info not in doomed)
        while left and size > settings.keep_bytes:
            oldest_left = left.pop(0)
            size -= oldest_left.bytes
            doomed.append(oldest_left)
    return doomed
