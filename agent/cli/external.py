"""`transship criu`: dump and restore a container's process tree on this host, by CRIU alone. No agent, no broker.

It is what one would do by hand, done in order: with -v each command is printed as it would be typed, with --dry-run it
is printed only.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.base import config
from agent.base.errors import AgentError, CommandFailed, Refused
from agent.base.shell import Shell, here_document, printable
from agent.checkpoint import external, logs
from agent.checkpoint.diagnosis import cause_of, hint
from agent.checkpoint.external import Address, Step, Tree
from agent.cli.output import OK, Out
from agent.doors.docker import Docker
from agent.doors.docker_model import Container
from protocol.errors import ErrorCode

SECONDS = 300.0


def dump(out: Out, name: str, *, leave_running: bool, verbose: bool, dry_run: bool) -> int:
    return asyncio.run(_dump(out, name, leave_running=leave_running, verbose=verbose, dry_run=dry_run))


def restore(out: Out, name: str, *, verbose: bool, dry_run: bool) -> int:
    return asyncio.run(_restore(out, name, verbose=verbose, dry_run=dry_run))


async def _dump(out: Out, name: str, *, leave_running: bool, verbose: bool, dry_run: bool) -> int:
    async with docker_here() as docker:
        container = await found_here(docker, name)
        if not container.running:
            raise Refused(ErrorCode.NOT_RUNNING, f"{name} is {container.state}, not running")
        tree = await _tree(docker, container)
    if not dry_run:
        shutil.rmtree(tree.folder, ignore_errors=True)  # of an earlier dump
    runner = Runner(verbose=verbose, dry_run=dry_run)
    try:
        await runner.run(external.dump_steps(tree, leave_running=leave_running))
    except CommandFailed as error:
        raise _explained(error, tree, "dump") from error
    if not dry_run:
        out.say(
            f"{name} is dumped to {tree.folder}; " + ("it runs on" if leave_running else "Docker says it has exited")
        )
        if not leave_running and tree.restart != "no":
            out.say(f"  its restart policy was {tree.restart}, and is `no` now", "dim")
    return OK


async def _restore(out: Out, name: str, *, verbose: bool, dry_run: bool) -> int:
    async with docker_here() as docker:
        container = await found_here(docker, name)
    if container.running:
        raise Refused(ErrorCode.BUSY, f"{name} runs: two of it would share its files and its address")
    record = external.FOLDER / container.id[:12] / external.RECORD
    if not record.exists():
        raise Refused(
            ErrorCode.NO_SUCH_CHECKPOINT, f"{name} was not dumped here", hint=f"`transship criu dump {name}` does that"
        )
    tree = external.from_record(record.read_text())
    runner = Runner(verbose=verbose, dry_run=dry_run)
    try:
        await runner.run(external.restore_steps(tree))
    except AgentError as error:
        await runner.regardless(external.take_down_steps(tree))
        if isinstance(error, CommandFailed):
            raise _explained(error, tree, "restore") from error
        raise
    if not dry_run:
        pid = (tree.folder / "work/pid").read_text().strip()
        out.say(f"{name} runs again, as process {pid}. It is not Docker's child: `docker ps` says Exited still,")
        out.say("  and Docker neither stops it nor keeps its output, which goes on in", "dim")
        out.say(f"  {tree.folder}/stdout and {tree.folder}/stderr", "dim")
    return OK


def _explained(error: CommandFailed, tree: Tree, what: str) -> CommandFailed:
    log = tree.folder / "work" / f"{what}.log"
    lines = logs.digest(log)
    if not lines:
        return error
    cause = cause_of(lines)
    meaning = f": probably {cause.meaning}" if cause is not None else ""
    return CommandFailed(
        f"CRIU could not {what} {tree.container}{meaning}", hint=hint(cause, log, "this host"), detail=lines
    )


class Runner:
    """Runs commands in order, and prints them as they would be typed."""

    def __init__(self, *, verbose: bool, dry_run: bool) -> None:
        self._shell = Shell()
        self._verbose = verbose or dry_run
        self._dry_run = dry_run

    async def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            await self._step(step, check=True)

    async def regardless(self, steps: Iterable[Step]) -> None:
        for step in steps:
            await self._step(step, check=False)

    async def _step(self, step: Step, *, check: bool) -> None:
        stdin = step.stdin.encode() if step.stdin else None
        if self._verbose:
            sys.stdout.write(f"{printable(step.argv)}{here_document(stdin)}\n")
            sys.stdout.flush()
        if not self._dry_run:
            # a CRIU that is killed in the middle leaves its parasite in the tasks
            await self._shell.run(*step.argv, stdin=stdin, timeout=SECONDS, killable=False, check=check)


def docker_here() -> Docker:
    settings = config.load(Path(os.environ.get("TRANSSHIP_CONFIG", config.DEFAULT_FILE)))
    return Docker(settings.docker, settings.deadlines.docker)


async def found_here(docker: Docker, name: str) -> Container:
    container = await docker.find(name)
    if container is None:
        raise Refused(ErrorCode.NO_SUCH_CONTAINER, f"there is no container {name} on this host")
    return container


async def _tree(docker: Docker, container: Container) -> Tree:
    """Everything about it that CRIU has to be told."""
    proc = Path(f"/proc/{container.pid}")
    if (proc / "uid_map").read_text().split()[:2] != ["0", "0"]:
        raise Refused(
            ErrorCode.NOT_MIGRATABLE,
            f"{container.name} has users of its own (userns-remap)",
            hint="`transship checkpoint` takes it",
        )
    here = Path("/proc/self/mountinfo").read_text()
    root, externals = external.mounts_of((proc / "mountinfo").read_text(), _sources(container), here)
    return Tree(
        container=container.name,
        id=container.id,
        pid=container.pid,
        root=root,
        externals=externals,
        pipes=_pipes(proc),
        networks=await _networks(docker, container),
        netns=str((proc / "ns/net").readlink()).replace(":[", "["),
        restart=str(container.restart_policy.get("Name") or "no"),
    )


def _sources(container: Container) -> dict[str, str]:
    """What Docker has mounted where, beside the root: its own three files, volumes and bind mounts."""
    own = {
        "/etc/hostname": container.raw.get("HostnamePath"),
        "/etc/hosts": container.raw.get("HostsPath"),
        "/etc/resolv.conf": container.raw.get("ResolvConfPath"),
    }
    found = {place: str(path) for place, path in own.items() if path}
    return found | {mount.destination: mount.source for mount in container.mounts if mount.kind in ("volume", "bind")}


def _pipes(proc: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for stream in (1, 2):
        fd = proc / f"fd/{stream}"
        name = str(fd.readlink()) if fd.is_symlink() else ""
        if name.startswith("pipe:[") and name not in found.values():
            found[stream] = name
    return found


async def _networks(docker: Docker, container: Container) -> tuple[Address, ...]:
    found = []
    for end in container.networks:
        network = await docker.network(end.network_id or end.network)
        if network is None or network.driver in ("host", "null"):
            continue
        if network.driver != "bridge":
            raise Refused(
                ErrorCode.NOT_MIGRATABLE,
                f"it is on {end.network}, a {network.driver} network",
                hint="only bridges can be set up by hand; `transship checkpoint` takes it",
            )
        settings = container.raw["NetworkSettings"]["Networks"][end.network]
        gateways = tuple(filter(None, (settings.get("Gateway"), settings.get("IPv6Gateway"))))
        bridge = "docker0" if end.network == "bridge" else f"br-{network.id[:12]}"
        found.append(Address(bridge, end.addresses, end.mac, gateways))
    return tuple(found)
