"""The one place that starts processes. Each is printed before it runs, as a person would type it.

`-v` shows the commands and how they ended, `-vv` their stderr too: together they are the transcript of a move.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agent.base.errors import CommandFailed, StepTimeout

wire = logging.getLogger("agent.wire")

TAIL_LINES = 50
LINE_BYTES = 16384
"""A longer line of stderr is broken here, so that a flood without newlines can't fill the memory."""
GRACE_SECONDS = 5.0
"""Between TERM and KILL, and for a killed process to be reaped."""
DRAIN_SECONDS = 1.0
"""For output after the end of the command: a child that it left behind may hold the pipes open for ever."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr_tail: tuple[str, ...]
    seconds: float


def printable(argv: Sequence[str], hide: Sequence[str] = ()) -> str:
    """The command as it would be typed, with secrets starred."""
    return " ".join(_starred(word, hide) or shlex.quote(word) for word in argv)


def here_document(stdin: bytes | None) -> str:
    """What the command reads, in the form in which it can be pasted into a shell."""
    if not stdin:
        return ""
    return " <<'END'\n" + stdin.decode(errors="replace").rstrip("\n") + "\nEND"


def _starred(word: str, hide: Sequence[str]) -> str:
    """The word without its secret, unquoted; nothing if there is none in it."""
    starred = word
    for secret in filter(None, hide):
        starred = starred.replace(secret, "***")
    return starred if starred != word else ""


class _Child(asyncio.SubprocessProtocol):
    """What a command says, and whether it has ended.

    Not `asyncio.subprocess`: there `wait()` waits for the pipes too, which a child that was left behind may hold open
    for ever, and a line that is too long kills the reader.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._rest = b""
        self._open = {1, 2}
        self.output: list[bytes] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.output.append(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._note(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if fd == 2 and self._rest:
            self._note(self._rest)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()

    def _note(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="replace").rstrip()
        self.tail.append(text)
        wire.log(logging.DEBUG - 1, "%s> %s", self._label, text)


class Running:
    """A command that has been started; `wait()` it, always, or `end()` it."""

    def __init__(
        self, transport: asyncio.SubprocessTransport, child: _Child, argv: tuple[str, ...], label: str, shown: str
    ) -> None:
        self._transport = transport
        self._child = child
        self._argv = argv
        self._label = label
        self._shown = shown
        self._began = time.monotonic()
        self._pid = transport.get_pid()

    @property
    def pid(self) -> int:
        return self._pid

    async def wait(self, *, check: bool = True) -> Done:
        """Wait for the end. A cancel leaves the command running: `end()` it then.

        Raises:
            CommandFailed: the code is not 0 and `check` is set.

        """
        await self._child.exited.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._child.drained.wait()
        code = self._transport.get_returncode()
        assert code is not None
        self._transport.close()
        tail = tuple(self._child.tail)
        output = b"".join(self._child.output).decode(errors="replace")
        done = Done(self._argv, code, output, tail, time.monotonic() - self._began)
        wire.debug("= %d in %.3f s (%s)", code, done.seconds, self._label)
        if check and code != 0:
            last = tail[-1] if tail else "it said nothing"
            raise CommandFailed(f"{self._label} {_how(code)}: {last}", detail=(self._shown, *tail))
        return done

    async def end(self) -> None:
        """TERM, grace, KILL to the whole process group, and reap; safe when it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._child.exited.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._child.exited.wait()
        if not self._child.exited.is_set():  # in the kernel, and deaf to KILL until that answers
            wire.error("%s (pid %d) can't be killed", self._label, self._pid)
        self._transport.close()


class Shell:
    """Runs commands. Injected wherever one is needed, so that a test can see or replace them all."""

    async def start(
        self,
        *argv: str,
        label: str = "",
        stdin: bytes | None = None,
        hide: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
    ) -> Running:
        """Start a command in a process group of its own.

        Raises:
            CommandFailed: the program is not there, or can't be started.

        """
        opening = asyncio.create_task(_open(argv, label, stdin, hide, env, pass_fds, cwd), name=f"start {argv[0]}")
        if await _see_through(opening):
            if opening.exception() is None:
                await _see_through(asyncio.create_task(opening.result().end(), name=f"end {argv[0]}"))
            raise asyncio.CancelledError
        return opening.result()

    async def run(
        self,
        *argv: str,
        label: str = "",
        timeout: float = 60.0,
        killable: bool = True,
        check: bool = True,
        stdin: bytes | None = None,
        hide: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
    ) -> Done:
        """Run a command to its end.

        With `killable=False` a cancel or a time-out waits for the end first: a CRIU killed in the middle of a dump
        leaves its parasite in the tasks and ruins them.

        Raises:
            CommandFailed: the code is not 0.
            StepTimeout: it took longer than `timeout` seconds.

        """
        opening = asyncio.create_task(_open(argv, label, stdin, hide, env, pass_fds, cwd), name=f"start {argv[0]}")
        cancelled = await _see_through(opening)
        if cancelled and opening.exception() is not None:
            raise asyncio.CancelledError
        running = opening.result()
        waiting = asyncio.create_task(running.wait(check=check), name=f"wait for {argv[0]}")
        try:
            if cancelled:  # while it was being started: it may be well on its way
                raise asyncio.CancelledError
            async with asyncio.timeout(timeout):
                return await asyncio.shield(waiting)
        except TimeoutError:
            await self._settle(running, waiting, killable)
            raise StepTimeout(
                f"{label or argv[0]} took longer than {timeout:g} s", detail=(printable(argv, hide),)
            ) from None
        except asyncio.CancelledError:
            await self._settle(running, waiting, killable)
            raise

    async def done_here(self, *argv: str, label: str, stdin: bytes, work: Callable[[], None]) -> None:
        """What a command does, done by a thread of this process, where the start of a command would take too long.

        It is shown as that command, which does the same where it is typed. A cancel waits for the end of it.

        Raises:
            CommandFailed: it did not work.

        """
        wire.debug("+ %s%s", printable(argv), here_document(stdin))
        began = time.monotonic()
        doing = asyncio.create_task(asyncio.to_thread(work), name=f"do as {argv[0]}")
        cancelled = await _see_through(doing)
        error = doing.exception()
        wire.debug("= %d in %.3f s (%s, by its library)", error is not None, time.monotonic() - began, label)
        if cancelled:
            raise asyncio.CancelledError
        if error is not None:
            raise error

    async def _settle(self, running: Running, waiting: asyncio.Task[Done], killable: bool) -> None:
        """See the command to its end; a cancel that comes meanwhile waits for that, and is passed on."""
        ending = asyncio.create_task(running.end(), name=f"end {running.pid}") if killable else waiting
        cancelled = await _see_through(ending)
        if ending is not waiting:
            # It has been reaped, or is past killing; either way nothing is waited for any longer.
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if not waiting.cancelled():
            waiting.exception()  # read, so that it is not reported as lost
        if cancelled:
            raise asyncio.CancelledError


async def _open(
    argv: tuple[str, ...],
    label: str,
    stdin: bytes | None,
    hide: Sequence[str],
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    cwd: str | None,
) -> Running:
    shown = printable(argv, hide)
    wire.debug("+ %s%s", shown, here_document(stdin))
    named = label or os.path.basename(argv[0])  # noqa: PTH119 - a word, no path
    try:
        transport, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: _Child(named),
            *argv,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **env} if env else None,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
        )
    except FileNotFoundError as error:
        if cwd is not None and not os.path.isdir(cwd):  # noqa: PTH112 - one stat, on the way out
            raise CommandFailed(f"{argv[0]} can't be started: there is no folder {cwd}") from error
        raise CommandFailed(f"{argv[0]} is not installed", hint=f"install {argv[0]} on this host") from error
    except OSError as error:
        raise CommandFailed(f"{argv[0]} can't be started: {error.strerror}", detail=(shown,)) from error
    if stdin is not None:
        pipe = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
        with contextlib.suppress(RuntimeError):  # uvloop: it has ended already, and closed its input
            pipe.write(stdin)
            pipe.close()  # once it is written; the command need not read to the end
    return Running(transport, child, argv, named, shown)


async def _see_through(task: asyncio.Task[Any]) -> bool:
    """Wait for the end of a task, whatever cancels come meanwhile; tells whether one has."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
