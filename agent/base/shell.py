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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def _starred(word: str, hide: Sequence[str]) -> str:
    """The word without its secret, unquoted; nothing if there is none in it."""
    starred = word
    for secret in filter(None, hide):
        starred = starred.replace(secret, "***")
    return starred if starred != word else ""


class Running:
    """A command that has been started; `wait()` it, always, or `end()` it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        argv: tuple[str, ...],
        label: str,
        shown: str = "",
        stdin: bytes | None = None,
    ) -> None:
        self._process = process
        self._argv = argv
        self._label = label
        self._shown = shown or printable(argv)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._began = time.monotonic()
        self._output: list[bytes] = []
        self._pipes = {
            asyncio.create_task(self._read_stderr(), name=f"{label} stderr"),
            asyncio.create_task(self._read_stdout(), name=f"{label} stdout"),
        }
        if stdin is not None:
            # Beside the readers: a command may fill its output before it has read all of its input.
            self._pipes.add(asyncio.create_task(self._feed(stdin), name=f"{label} stdin"))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _feed(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            stream.write(data)
            await stream.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it need not read to the end
        finally:
            stream.close()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        while chunk := await self._process.stderr.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._note(line)
        if rest:
            self._note(rest)

    def _note(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="replace").rstrip()
        self._tail.append(text)
        wire.log(logging.DEBUG - 1, "%s> %s", self._label, text)

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(65536):
            self._output.append(chunk)

    async def wait(self, *, check: bool = True) -> Done:
        """Wait for the end. A cancel leaves the command running: `end()` it then.

        Raises:
            CommandFailed: the code is not 0 and `check` is set.

        """
        code = await self._process.wait()
        if self._pipes:
            await asyncio.wait(self._pipes, timeout=DRAIN_SECONDS)
        await self._close_pipes()
        done = Done(
            self._argv, code, b"".join(self._output).decode(errors="replace"), tuple(self._tail), self._elapsed()
        )
        wire.debug("= %d in %.3f s (%s)", code, done.seconds, self._label)
        if check and code != 0:
            last = done.stderr_tail[-1] if done.stderr_tail else "it said nothing"
            raise CommandFailed(f"{self._label} {_how(code)}: {last}", detail=(self._shown, *done.stderr_tail))
        return done

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    async def _close_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def end(self) -> None:
        """TERM, grace, KILL to the whole process group, and reap; safe when it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._process.wait()
        if self._process.returncode is None:  # in the kernel, and deaf to KILL until that answers
            wire.error("%s (pid %d) can't be killed", self._label, self._process.pid)
        await self._close_pipes()


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
        shown = printable(argv, hide)
        wire.debug("+ %s%s", shown, " < (input)" if stdin else "")
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
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
        return Running(process, tuple(argv), label or os.path.basename(argv[0]), shown, stdin)  # noqa: PTH119 - a word

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
        running = await self.start(*argv, label=label, stdin=stdin, hide=hide, env=env, pass_fds=pass_fds, cwd=cwd)
        waiting = asyncio.create_task(running.wait(check=check), name=f"wait for {argv[0]}")
        try:
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

    async def _settle(self, running: Running, waiting: asyncio.Task[Done], killable: bool) -> None:
        """See the command to its end; a cancel that comes meanwhile waits for that, and is passed on."""
        ending = asyncio.create_task(running.end(), name=f"end {running.pid}") if killable else waiting
        cancelled = False
        while not ending.done():
            try:
                await asyncio.wait({ending})
            except asyncio.CancelledError:
                cancelled = True
        if ending is not waiting:
            # It has been reaped, or is past killing; either way nothing is waited for any longer.
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if not waiting.cancelled():
            waiting.exception()  # read, so that it is not reported as lost
        if cancelled:
            raise asyncio.CancelledError


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
