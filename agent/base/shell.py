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
GRACE_SECONDS = 5.0
"""Between TERM and KILL."""


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
    return " ".join("***" if word in hide else shlex.quote(word) for word in argv)


class Running:
    """A command that has been started; `wait()` it, always."""

    def __init__(self, process: asyncio.subprocess.Process, argv: tuple[str, ...], label: str) -> None:
        self._process = process
        self._argv = argv
        self._label = label
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._began = time.monotonic()
        self._output: list[bytes] = []
        self._readers = [
            asyncio.create_task(self._read_stderr(), name=f"{label} stderr"),
            asyncio.create_task(self._read_stdout(), name=f"{label} stdout"),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            wire.log(logging.DEBUG - 1, "%s> %s", self._label, text)

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(65536):
            self._output.append(chunk)

    async def wait(self, *, check: bool = True) -> Done:
        """Wait for the end.

        Raises:
            CommandFailed: the code is not 0 and `check` is set.

        """
        await asyncio.gather(*self._readers)
        code = await self._process.wait()
        done = Done(
            self._argv, code, b"".join(self._output).decode(errors="replace"), tuple(self._tail), self._elapsed()
        )
        wire.debug("= %d in %.3f s (%s)", code, done.seconds, self._label)
        if check and code != 0:
            last = done.stderr_tail[-1] if done.stderr_tail else "it said nothing"
            raise CommandFailed(
                f"{self._label} ended with code {code}: {last}", detail=(printable(self._argv), *done.stderr_tail)
            )
        return done

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

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
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


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
            CommandFailed: the program is not there.

        """
        wire.debug("+ %s%s", printable(argv, hide), " < (input)" if stdin else "")
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
            raise CommandFailed(f"{argv[0]} is not installed", hint=f"install {argv[0]} on this host") from error
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.drain()
            process.stdin.close()
        return Running(process, tuple(argv), label or os.path.basename(argv[0]))  # noqa: PTH119 - a word, no path

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
        if killable:
            await asyncio.shield(running.end())
        while not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({waiting})
        if not waiting.cancelled():
            waiting.exception()  # read, so that it is not reported as lost
