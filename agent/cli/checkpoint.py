"""`transship checkpoint` and `restore`: ask a host for it; a file or `-` is moved here, by this program's own rights.

The agent gets a folder with two fifos on its own host and no path: agent/vault/places.py says what lies in it.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.base import config
from agent.base.durable import publish
from agent.base.errors import Refused, StepFailed, from_wire
from agent.base.tasks import in_own_thread, readable, writable
from agent.cli import finding
from agent.cli.controller import Controller, checked
from agent.cli.listing import known
from agent.cli.output import OK, Out, duration, size
from agent.vault.places import ACK, DATA, KEPT, KEY, PIPES
from protocol.base import new_command_id
from protocol.checkpoint import CheckpointInfo
from protocol.commands import (
    Checkpoint,
    Command,
    ListCheckpoints,
    Reply,
    ReplyKind,
    Restore,
)
from protocol.errors import ErrorCode

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint that was asked for."""

    container: str
    to: str = ""
    """`-`, a file, `oci:...`; empty for the host's folder."""
    host: str | None = None
    leave_running: bool = False
    tcp: str = "auto"
    execs: str = "refuse"
    compression: str = "zstd"
    with_image: bool = False
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class WantedBack:
    """A restore that was asked for."""

    archive: str
    """`-`, a file, or the id of one in a host's folder."""
    host: str | None = None
    """That has it; else it is looked for."""
    on: str | None = None
    name: str | None = None
    tcp: str = "auto"
    key_file: Path | None = None


def is_file(to: str) -> bool:
    """A store is named by its kind, an id has 12 hexadecimal digits; all else is a file."""
    return bool(to) and not to.startswith("oci:")


async def checkpoint(controller: Controller, out: Out, wanted: Wanted) -> int:
    out.moving = True
    hosts = {one.host: one for one in await controller.hosts()}
    if wanted.host is not None and wanted.host not in hosts:
        raise Refused(ErrorCode.NO_SUCH_HOST, f"there is no host {wanted.host}", hint=known(hosts))
    found = finding.find(wanted.container, await controller.containers(wanted.host), hosts)
    with _pipe(wanted.key_file) if is_file(wanted.to) else contextlib.nullcontext() as pipe:
        command = checked(
            Checkpoint,
            container=found.id,
            store="" if pipe else wanted.to,
            pipe=pipe.name if pipe else None,
            leave_running=wanted.leave_running,
            tcp=wanted.tcp,
            execs=wanted.execs,
            compression=wanted.compression,
            with_image=wanted.with_image,
        )
        if pipe is None:
            reply = await _last(controller, found.host, command)
        else:
            reply = await _taken(controller, found.host, command, pipe, wanted.to)
    info = reply.checkpoint
    assert info is not None
    if out.as_json:
        out.item({"ok": True, **info.model_dump(mode="json"), "place": wanted.to if pipe else info.place})
    elif wanted.to != "-":
        _tell(out, info, wanted.to if pipe else info.place)
    return OK


def _tell(out: Out, info: CheckpointInfo, place: str) -> None:
    state = "runs on" if info.left_running else "is stopped"
    out.say(f"{info.id}  {info.container} {state}; it stood still for {duration(info.frozen_ms)}")
    out.say(f"  {place} ({size(info.bytes)}{', sealed' if info.encrypted else ''})", "dim")
    for note in info.notes:
        out.say(f"  note: {note}", "dim")


async def restore(controller: Controller, out: Out, wanted: WantedBack) -> int:
    by_id, stored = _is_id(wanted.archive), not is_file(wanted.archive)
    with contextlib.nullcontext() if by_id or stored else _pipe(wanted.key_file) as pipe:
        command = checked(
            Restore,
            checkpoint=wanted.archive if by_id else None,
            store=wanted.archive if stored else "",
            pipe=pipe.name if pipe else None,
            on=None if stored else wanted.on,  # a registry is where everybody is
            name=wanted.name,
            tcp=wanted.tcp,
        )
        if pipe is None:
            host = (wanted.on or local_host()) if stored else wanted.host or await holder(controller, wanted.archive)
            reply = await _last(controller, host, command)
        else:
            host = wanted.host or local_host()
            reply = await _given(controller, host, command, pipe, wanted.archive)
    where = wanted.on or host
    if out.as_json:
        out.item({"ok": True, "host": where, "migration": reply.migration, "notes": list(reply.notes)})
    out.say(f"restored on {where}")
    for note in reply.notes:
        out.say(f"  note: {note}", "dim")
    return OK


def _is_id(archive: str) -> bool:
    return len(archive) == 12 and set(archive) <= set("0123456789abcdef") and not Path(archive).exists()


async def holder(controller: Controller, checkpoint: str) -> str:
    """The host that has it in its folder."""
    for host in await controller.hosts():
        if host.online:
            reply = await controller.ask(host.host, ListCheckpoints(id=new_command_id()))
            if any(info.id == checkpoint for info in reply.checkpoints or ()):
                return host.host
    raise Refused(
        ErrorCode.NO_SUCH_CHECKPOINT,
        f"no host that is online has the checkpoint {checkpoint}",
        hint="`transship checkpoints` lists them; a file is named with its path, as ./FILE",
    )


def local_host() -> str:
    """The name of the agent on this machine."""
    with contextlib.suppress(ValueError, OSError):
        return config.load(Path(os.environ.get("TRANSSHIP_CONFIG", config.DEFAULT_FILE))).host
    return os.uname().nodename.split(".")[0].lower()


async def _last(controller: Controller, host: str, command: Command) -> Reply:
    replies = [reply async for reply in controller.command(host, command)]
    return _good(replies[-1])


def _good(reply: Reply) -> Reply:
    if reply.error is not None:
        raise from_wire(reply.error)
    return reply


# --- the pipe ---


@contextlib.contextmanager
def _pipe(key_file: Path | None) -> Iterator[Path]:
    """A folder for one archive, for root alone; gone afterwards."""
    folder = PIPES / secrets.token_hex(8)
    try:
        PIPES.mkdir(mode=0o700, exist_ok=True, parents=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"{PIPES} can't be used: {error.strerror}",
            hint="a file or `-` needs root, on the host itself; without --to the checkpoint stays in the host's folder",
        ) from None
    loop = asyncio.get_running_loop()
    story = asyncio.current_task()
    assert story is not None
    # a key may lie in it: whoever ends this program politely has it cleaned up (not as by Ctrl-C: `&` has that ignored)
    loop.add_signal_handler(signal.SIGTERM, story.cancel)
    try:
        for name in (DATA, ACK):
            os.mkfifo(folder / name, 0o600)
        if key_file is not None:
            _keep_key(folder / KEY, key_file)
        yield folder
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _keep_key(place: Path, key_file: Path) -> None:
    try:
        key = key_file.read_bytes()
    except OSError as error:
        raise Refused(ErrorCode.BAD_COMMAND, f"the key {key_file} can't be read: {error.strerror}") from None
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)


async def _taken(controller: Controller, host: str, command: Command, pipe: Path, to: str) -> Reply:
    """Take the archive out of the pipe, until the agent says how it has ended."""
    data = os.open(pipe / DATA, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = _File(to)
    try:
        return await _moving(controller, host, command, data, lambda: _take(data, pipe / ACK, file))
    except BaseException:
        file.forget()
        raise


async def _moving(
    controller: Controller, host: str, command: Command, data: int, move: Callable[[], Coroutine[Any, Any, None]]
) -> Reply:
    """Have the bytes moved, from when the agent has accepted the command until it says how that has ended.

    `move` closes its end of the pipe, `data`, when it can't go on: so the agent notices.
    """
    moving: asyncio.Task[None] | None = None
    try:
        async for reply in controller.command(host, command):
            if reply.kind is ReplyKind.ACCEPTED and moving is None:
                moving = asyncio.create_task(move(), name="move the archive")
            if reply.kind is ReplyKind.FAILED and moving is not None and moving.done():
                moving.result()  # what went wrong here is what there is to tell
            if reply.kind is not ReplyKind.ACCEPTED:
                return _good(reply)
        raise StepFailed(f"{host} has not said how it ended")
    finally:
        if moving is None:
            os.close(data)
        else:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)


class _File:
    """Where it goes: a new file of 0600, or standard output."""

    def __init__(self, to: str) -> None:
        self._path = None if to == "-" else Path(to)
        if self._path is None:
            if sys.stdout.isatty():
                raise Refused(ErrorCode.BAD_COMMAND, "an archive is nothing for a terminal", hint="> FILE, or a pipe")
            self.fd = os.dup(sys.stdout.fileno())
            return
        self._part = self._path.with_name(f".{self._path.name}.part")
        try:
            self.fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(ErrorCode.BAD_COMMAND, f"{to} can't be written: {error.strerror}") from None

    def keep(self) -> None:
        if self._path is None:
            with contextlib.suppress(OSError):  # a pipe has nothing to sync
                os.fsync(self.fd)
            os.close(self.fd)
            return
        os.fchmod(self.fd, 0o600)
        os.fsync(self.fd)
        os.close(self.fd)
        publish(self._part, self._path)

    def forget(self) -> None:
        if self._path is not None:
            self._part.unlink(missing_ok=True)


async def _take(data: int, ack: Path, file: _File) -> None:
    try:
        async for chunk in _chunks(data):
            await in_own_thread(partial(_write_all, file.fd, chunk))
        await asyncio.to_thread(file.keep)
    except OSError as error:
        raise StepFailed(f"the archive can't be written: {error.strerror}") from error
    finally:
        os.close(data)  # an agent that is still at it has to notice
    with contextlib.suppress(OSError):  # the agent has given it up already, and says why
        told = os.open(ack, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(told, KEPT)
        finally:
            os.close(told)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    while True:
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:
            await readable(fd)
            continue
        if not chunk:
            return
        yield chunk
        await asyncio.sleep(0)


async def _given(controller: Controller, host: str, command: Command, pipe: Path, archive: str) -> Reply:
    """Put the archive into the pipe, until the agent has had enough or there is no more."""
    try:
        source = os.dup(sys.stdin.fileno()) if archive == "-" else os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(ErrorCode.BAD_COMMAND, f"{archive} can't be read: {error.strerror}") from None
    data = os.open(pipe / DATA, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # read-write: the agent comes later
    try:
        return await _moving(controller, host, command, data, lambda: _give(source, data))
    finally:
        os.close(source)


async def _give(source: int, data: int) -> None:
    try:
        while chunk := await in_own_thread(partial(os.read, source, CHUNK)):
            left = memoryview(chunk)
            while left:
                try:
                    left = left[os.write(data, left) :]
                except BlockingIOError:
                    await writable(data)
    except OSError as error:
        raise StepFailed(f"the archive can't be read: {error.strerror}") from error
    finally:
        os.close(data)
