"""`transship native`: Docker's own checkpoints, on this host; no agent, no broker. Refused where they do not work."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.base import config
from agent.checkpoint.external import Step
from agent.cli.external import Runner, docker_here, found_here
from agent.cli.output import OK, Out
from agent.doors import docker_checkpoints
from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from agent.vault import own

Work = Callable[[Docker, Container], Awaitable[None]]


def _on(name: str, work: Work) -> int:
    """With the container of this host."""

    async def run() -> None:
        async with docker_here() as docker:
            await work(docker, await found_here(docker, name))

    asyncio.run(run())
    return OK


def _state() -> Path:
    """The folder of this host's agent, which sees to restart policies."""
    return config.load(Path(os.environ.get("TRANSSHIP_CONFIG", config.DEFAULT_FILE))).state_dir


def create(out: Out, container: str, name: str, *, leave_running: bool) -> int:
    async def work(docker: Docker, found: Container) -> None:
        await own.create(docker, _state(), found, name, leave_running=leave_running)
        out.say(f"{name} of {container} is taken; it {'runs on' if leave_running else 'is stopped'}")

    return _on(container, work)


def show(out: Out, container: str) -> int:
    async def work(docker: Docker, found: Container) -> None:
        names = await docker_checkpoints.names(docker, found.id)
        if out.as_json:
            out.item({"container": container, "checkpoints": names})
        else:
            out.table(("CHECKPOINT",), [(name,) for name in names], empty="no checkpoints")

    return _on(container, work)


def remove(out: Out, container: str, name: str) -> int:
    async def work(docker: Docker, found: Container) -> None:
        await docker_checkpoints.remove(docker, found.id, name)
        out.say(f"{name} of {container} is removed")

    return _on(container, work)


def start(out: Out, container: str, name: str) -> int:
    """Start from a checkpoint; what turns out to be a cold start is ended again."""

    async def work(docker: Docker, found: Container) -> None:
        await own.start(docker, _state(), found, name)
        out.say(f"{container} goes on from {name}")

    return _on(container, work)


# --- to another host ---


def save(out: Out, container: str, name: str, file: Path, *, verbose: bool) -> int:
    """Checkpoint and writable layer as a tar, for the same container on another host."""

    async def work(docker: Docker, found: Container) -> None:
        await own.check_engine(docker)
        command = await own.save_command(docker, found, name, file)
        await Runner(verbose=verbose, dry_run=False).run([Step(command)])
        out.say(f"{file}: {name} of {container}, for `transship native load` on a host with its image")

    return _on(container, work)


def load(out: Out, container: str, file: Path, *, verbose: bool) -> int:
    """Into a container that was created from the same image, with the same options, and never started."""

    async def work(docker: Docker, found: Container) -> None:
        await own.check_engine(docker)
        commands = await own.load_commands(docker, found, file)
        await Runner(verbose=verbose, dry_run=False).run([Step(command) for command in commands])
        out.say(f"{container} can be started from " + " or ".join(await docker_checkpoints.names(docker, found.id)))

    return _on(container, work)
