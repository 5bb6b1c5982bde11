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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.base import durable
from agent.base.errors import AgentError
from agent.checkpoint import proc
from agent.doors.docker import Docker
from agent.doors.docker_model import Container

log = logging.getLogger("agent.kept")

FOLDER = "policies"
LOOK_SECONDS = 0.5
NO = ("", "no")
NOBODY = "0 ended"
"""An owner that is never alive."""

Policy = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is written down of a container."""

    policy: Policy
    started_at: str
    """Of the start that the checkpoint has ended, or is about to."""
    owner: str = ""
    """The process that has it paused for a checkpoint of Docker's own, by pid and start; empty for our own, of which
    the journal tells.
    """


def keep(state: Path, container_id: str, wanted: Kept) -> None:
    """Write it down, durably, before the container is paused or ended; nothing to do for one that starts nothing."""
    if wanted.policy.get("Name", "no") in NO and not wanted.owner:
        return
    path = _path(state, container_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"policy": dict(wanted.policy), "started_at": wanted.started_at, "owner": wanted.owner}
    durable.write(path, json.dumps(content))


def give_up(state: Path, container_id: str) -> None:
    """Its owner, which lives on, has no more to do with it: whoever looks next may let it go on."""
    if (found := recall(state, container_id)) is not None:
        keep(state, container_id, replace(found, owner=NOBODY))


def recall(state: Path, container_id: str) -> Kept | None:
    """What a container is to get back; None for one that has it."""
    try:
        return Kept(**json.loads(_path(state, container_id).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def sweep(state: Path) -> None:
    """Remove what an agent before this one was about to write down."""
    for part in (state / FOLDER).glob("*.part"):
        part.unlink(missing_ok=True)


def let_go(state: Path, container_id: str) -> None:
    _path(state, container_id).unlink(missing_ok=True)


def policy_of(state: Path, container: Container) -> dict[str, Any]:
    """A container's own policy, also just after its start."""
    own, found = dict(container.restart_policy), recall(state, container.id)
    return dict(found.policy) if found is not None and own.get("Name", "no") in NO else own


def me() -> str:
    """This process, as an owner."""
    return f"{os.getpid()} {proc.start_time(os.getpid())}"


def _is_alive(owner: str) -> bool:
    pid, started = owner.split()
    return str(proc.start_time(int(pid))) == started


async def give_back(docker: Docker, state: Path, container_id: str) -> bool:
    """Make sure that a container that was started again has its own policy, unless it was given another meanwhile; and
    one that its owner has left paused goes on, too.

    False if that has to be looked at again: a checkpoint of Docker's own is under way.
    """
    wanted = recall(state, container_id)
    if wanted is None:
        return True
    found = await docker.find(container_id)
    if found is not None and not found.running:
        return True
    if found is not None and found.started_at == wanted.started_at:
        if not wanted.owner:
            return True  # it is about to be ended, or the journal's recovery sees to it
        first = proc.task(found.pid)
        if (first is not None and first.tracer) or _is_alive(wanted.owner):
            return False  # to go on beneath a CRIU would ruin it
        if found.paused:
            await docker.unpause(container_id)
    if found is not None and found.restart_policy.get("Name", "no") in NO:
        await docker.set_restart_policy(container_id, dict(wanted.policy))
    let_go(state, container_id)
    return True


async def until_given_back(docker: Docker, state: Path, container_id: str) -> None:
    while not await give_back(docker, state, container_id):
        await asyncio.sleep(LOOK_SECONDS)


def _all(state: Path) -> Iterator[str]:
    folder = state / FOLDER
    if folder.is_dir():
        yield from sorted(path.stem for path in folder.glob("*.json"))


def _path(state: Path, container_id: str) -> Path:
    return state / FOLDER / f"{container_id}.json"


class Keeper:
    """Gives the policies back as containers are started."""

    def __init__(self, docker: Docker, state: Path) -> None:
        self._docker = docker
        self._state = state
        self._giving: set[asyncio.Task[None]] = set()

    def started(self, container_id: str) -> None:
        """A container was started, or removed, or has another policy."""
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
            await until_given_back(self._docker, self._state, container_id)
        except AgentError as error:  # dockerd is away; with its return all are looked at
            log.warning("the restart policy of %s could not be given back yet: %s", container_id[:12], error.message)

    async def close(self) -> None:
        for task in list(self._giving):
            task.cancel()
        await asyncio.gather(*self._giving, return_exceptions=True)
