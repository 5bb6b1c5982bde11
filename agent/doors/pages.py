"""The agent's side of a page channel's end (agent/runtime/pages.py): start it, tell it, and carry its bytes to a peer.

The end is a process of its own and outlives the agent; a restarted agent finds it by its folder.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import aiohttp

from agent.base.errors import StepFailed, TransferFailed
from agent.base.shell import Shell
from agent.base.tasks import to_the_end
from agent.runtime import pages

STOP_SECONDS = 25.0
"""For CRIU to let its tasks go, after it was hung up on."""
CHUNK = 256 << 10
LARGEST_MESSAGE = 1 << 20
"""Of a link between two agents; what they send there is at most a chunk."""
HEARTBEAT_SECONDS = 5.0
"""Between two pings on a link: a cut cable must be noticed on a link that has nothing to say."""

PEER = struct.Struct("3i")
"""What the kernel says of who listens: process, user, group."""

Pace = Callable[[int], Awaitable[None]]


class WebSocket(Protocol):
    """What aiohttp's client and server have in common."""

    async def send_bytes(self, data: bytes) -> None: ...
    async def close(self) -> bool: ...
    def __aiter__(self) -> AsyncIterator[aiohttp.WSMessage]: ...


class PageChannel:
    """One end of one channel."""

    def __init__(self, shell: Shell, folder: Path) -> None:
        self._shell = shell
        self.folder = folder
        self._writer: asyncio.StreamWriter | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._hung_up = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def exists(self) -> bool:
        return (self.folder / "control").exists()

    @property
    def pid(self) -> int | None:
        """The end's process, as the kernel knows it now; None if nobody listens there. Does not block."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asked:
            try:
                asked.connect(str(self.folder / "control"))
            except OSError:
                return None
            return int(PEER.unpack(asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[0])

    async def start(self, *command: str, seconds: float) -> None:
        """Start the end, within `seconds`, with what it will run when it is told to; nothing runs yet.

        Raises:
            StepFailed, CommandFailed, StepTimeout: it does not come up.

        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        argv = (sys.executable, "-I", "-S", pages.__file__, str(self.folder), "--", *command)
        await self._shell.run(*argv, label="page channel", timeout=seconds)
        if not await self.connect():
            raise StepFailed("the page channel does not come up")

    async def connect(self) -> bool:
        """Listen to the end that is there; whether there is one."""
        if self._writer is not None:
            return True
        try:
            reader, self._writer = await asyncio.open_unix_connection(self.folder / "control")
        except OSError:
            return False
        self._hearing = asyncio.create_task(self._hear(reader), name="hear of a page channel")
        return True

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        said = {b"ready": self._ready, b"hung-up": self._hung_up, b"ended": self._ended}
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                said[line.split()[0]].set()
        self._ended.set()  # or the end itself has: then nothing more can come of it

    def begin(self) -> None:
        """Have the command run."""
        self._say("start")

    def guard(self, file: Path, word: str) -> None:
        """Have `word` written to `file`, if the command fails, by the end itself: at once, and without this agent."""
        self._say(f"guard {file} {word}")

    def _say(self, word: str) -> None:
        assert self._writer is not None
        self._writer.write(word.encode() + b"\n")

    async def until_ready(self) -> bool:
        """Wait until the command listens; False if it has ended without that."""
        await self._first_of(self._ready, self._ended)
        return self._ready.is_set()

    async def until_ended(self) -> None:
        """Wait until the command, or the end itself, has ended."""
        await self._ended.wait()

    async def until_news(self, seconds: float) -> None:
        """Wait until the command has ended or the other end hangs up; at most so long."""
        if not await self.connect():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not self._hung_up.is_set():
                    await self._first_of(self._hung_up, self._ended)
                await self._ended.wait()

    async def _first_of(self, *events: asyncio.Event) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    @property
    def hung_up(self) -> bool:
        """Whether no more comes from the other end."""
        return self._hung_up.is_set()

    @property
    def ended(self) -> bool:
        """Whether nothing runs here any more, as far as it was `connect`ed to."""
        return self._writer is None or self._ended.is_set()

    @property
    def code(self) -> int | None:
        """The command's exit code, once it has one; kept when the end itself is gone."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "ended").read_text())
        return None

    @property
    def said(self) -> tuple[str, ...]:
        with contextlib.suppress(OSError):
            return tuple((self.folder / "output").read_text(errors="replace").splitlines()[-20:])
        return ()

    async def stop(self, *, kill: bool = False) -> None:
        """Make sure that there is no such end: hang up on the command, or kill it, and wait for that.

        Raises:
            StepFailed: it does not end.

        """
        await to_the_end(self._stop(kill=kill))

    async def _stop(self, *, kill: bool) -> None:
        if await self.connect():
            assert self._hearing is not None
            with contextlib.suppress(OSError):
                self._say("kill" if kill else "stop")
            await asyncio.wait({self._hearing}, timeout=STOP_SECONDS)
            if not self._hearing.done():
                raise StepFailed("the page channel does not end")
        for name in ("control", "link"):
            (self.folder / name).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; it stays."""
        if self._hearing is not None:
            self._hearing.cancel()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def carry(
        self, socket: WebSocket, pace: Pace | None = None, taking: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Carry bytes between the end and the peer until either hangs up; each waits for `pace`, or for `taking`.

        Raises:
            TransferFailed: there is no end here.

        """
        try:
            reader, writer = await asyncio.open_unix_connection(self.folder / "link", limit=CHUNK)
        except OSError as error:
            raise TransferFailed(f"there is no page channel here: {error}") from None

        async def out() -> None:
            while data := await reader.read(CHUNK):
                if pace is not None:
                    await pace(len(data))
                await socket.send_bytes(data)

        async def into() -> None:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                if taking is not None:
                    await taking()
                writer.write(message.data)
                await writer.drain()

        ways = [asyncio.create_task(out()), asyncio.create_task(into())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            await asyncio.gather(*ways, return_exceptions=True)
            with contextlib.suppress(OSError, RuntimeError):
                await socket.close()
