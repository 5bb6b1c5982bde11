"""Containers that were ended on purpose, their memory being in a checkpoint: none starts by itself with an empty one.

dockerd starts a container by its restart policy whenever it comes up itself, `always` even one that was stopped by
hand. So the policy is `no` from the checkpoint on, and is here, in a small file for each, until somebody starts the
container: then it gets its own back.
"""

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.base.errors import AgentError
from agent.doors.docker import Docker
from agent.doors.docker_model import Container

log = logging.getLogger("agent.kept")

FOLDER = "policies"

Policy = Mapping[str, Any]


def keep(state: Path, container_id: str, policy: Policy) -> None:
    """Write a policy down, durably, before the container is ended; nothing to do for one that starts nothing."""
    if policy.get("Name", "no") in ("", "no"):
        return
    path = _path(state, container_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump(dict(policy), file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def recall(state: Path, container_id: str) -> Policy | None:
    """The policy that a container is to get back; None for one that has it."""
    try:
        found: dict[str, Any] = json.loads(_path(state, container_id).read_text())
    except (OSError, ValueError):
        return None
    return found


def let_go(state: Path, container_id: str) -> None:
    _path(state, container_id).unlink(missing_ok=True)


def policy_of(state: Path, container: Container) -> dict[str, Any]:
    """A container's own policy, also just after its start."""
    own = dict(container.restart_policy)
    return own if own.get("Name", "no") not in ("", "no") else dict(recall(state, container.id) or own)


async def give_back(docker: Docker, state: Path, container_id: str) -> None:
    """Make sure that a container that runs again has its own policy, unless it was given another meanwhile."""
    policy = recall(state, container_id)
    if policy is None:
        return
    found = await docker.find(container_id)
    if found is not None and not found.running:
        return
    if found is not None and found.restart_policy.get("Name", "no") in ("", "no"):
        await docker.set_restart_policy(container_id, dict(policy))
    let_go(state, container_id)


def _all(state: Path) -> Iterator[str]:
    folder = state / FOLDER
    if folder.is_dir():
        yield from sorted(path.stem for path in folder.glob("*.json"))


def _path(state: Path, container_id: str) -> Path:
    return state / FOLDER / f"{container_id}.json"


class Kept:
    """Gives the policies back as containers are started."""

    def __init__(self, docker: Docker, state: Path) -> None:
        self._docker = docker
        self._state = state
        self._giving: set[asyncio.Task[None]] = set()

    def started(self, container_id: str) -> None:
        """A container was started, or removed."""
        if recall(self._state, container_id) is not None:
            task = asyncio.create_task(self._give_back(container_id), name=f"policy of {container_id[:12]}")
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    def look(self) -> None:
        """Look at all of them: starts may have been missed."""
        for container_id in _all(self._state):
            self.started(container_id)

    async def _give_back(self, container_id: str) -> None:
        try:
            await give_back(self._docker, self._state, container_id)
        except AgentError as error:  # dockerd is away; with its return all are looked at
            log.warning("the restart policy of %s could not be given back yet: %s", container_id[:12], error.message)

    async def close(self) -> None:
        for task in list(self._giving):
            task.cancel()
        await asyncio.gather(*self._giving, return_exceptions=True)
