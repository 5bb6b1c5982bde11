"""One end of a page channel: the bytes between CRIU here and CRIU on the other host, across any number of links.

    pages.py FOLDER -- COMMAND...

A program of its own, so that post-copy outlives the agent: it starts COMMAND (CRIU's page server on the source, its
lazy-pages daemon on the target) with one end of a socket pair as descriptor `PAGES_FD`, numbers what comes out of it,
and keeps that until the other end has said that it has it. The agents only carry bytes between the two `link` sockets.
A link that breaks is replaced by a new one, and both ends go on where they stopped.

    FOLDER/control   the agent: `start`, `stop`, `kill`, `guard FILE WORD`; it is told `ready`, `hung-up`, `ended CODE`
    FOLDER/link      the agent's connection to the other end; a new one replaces the old
    FOLDER/ended     the command's exit code, once it has one
    FOLDER/output    what the command says
    FOLDER/log       what this program says, where it fails

A frame is kind, offset and length, then as many bytes. `HELLO` comes first on each link and says how much of
the other end's stream has come; `DATA` has an offset in the sender's; `ACK` says how much was handed on; `END` that no
more comes. An end is not passed on to the command: CRIU's daemon would end of it, and whoever waits for a page that
did not come would go on with zeros in its place.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable

PAGES_FD = 20
READY_FD = 21
"""The command writes a byte there when it listens; both numbers are in command lines and CRIU's options."""
WINDOW = 8 << 20
"""Bytes that may be under way, each direction; what a broken link costs at most in repeats."""
CHUNK = 256 << 10
ACK_EVERY = 256 << 10
HEAD = struct.Struct(">BQI")
HELLO, DATA, ACK, END = 1, 2, 3, 4
LARGEST = 1 << 20
NOT_STARTED = 127


class Broken(Exception):
    """The other end does not keep to the protocol."""


class Stream:
    """Both directions between a local socket and the other end."""

    def __init__(self, local: socket.socket) -> None:
        self._local = local
        self._unacked: deque[tuple[int, bytes]] = deque()
        self._unsent: deque[tuple[int, bytes]] = deque()
        """Those of them that the link there is has not had yet."""
        self.acked = 0
        self.taken = 0
        self.ended = False
        self.received = 0
        self.delivered = 0
        self.hung_up = asyncio.Event()
        """The other end has said all, and all of it was handed on."""
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ending = False
        self._room = asyncio.Event()
        self._more = asyncio.Event()

    async def pull(self) -> None:
        """Take what the command sends, as long as not too much of it is under way."""
        loop = asyncio.get_running_loop()
        while True:
            while self.taken - self.acked >= WINDOW:
                self._room.clear()
                await self._room.wait()
            try:
                data = await loop.sock_recv(self._local, CHUNK)
            except OSError:
                data = b""
            if not data:
                self.ended = True
                self._more.set()
                return
            self._unacked.append((self.taken, data))
            self._unsent.append((self.taken, data))
            self.taken += len(data)
            self._more.set()

    async def deliver(self) -> None:
        """Hand on what has come. Apart from the links: what is handed on by half when one breaks would come twice."""
        loop = asyncio.get_running_loop()
        while (data := await self._inbox.get()) is not None:
            with contextlib.suppress(OSError):  # the command has ended; the other end may say so first
                await loop.sock_sendall(self._local, data)
            self.delivered += len(data)
            self._more.set()
        self.hung_up.set()

    async def over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Go on over this link until it breaks.

        Raises:
            IncompleteReadError, OSError: it broke.
            Broken: what comes makes no sense.

        """
        writer.write(HEAD.pack(HELLO, self.received, 0))
        kind, cursor, _ = HEAD.unpack(await reader.readexactly(HEAD.size))
        if kind != HELLO or not self.acked <= cursor <= self.taken:
            raise Broken(f"kind {kind} at {cursor}; {self.acked} to {self.taken} are here")
        self._trim(cursor)
        self._unsent = deque(self._unacked)
        sending = asyncio.create_task(self._send(writer, cursor))
        try:
            await self._take(reader)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, cursor: int) -> None:
        acked, told_end = 0, False
        while True:
            self._more.clear()
            if self.delivered - acked >= ACK_EVERY:
                acked = self.delivered
                writer.write(HEAD.pack(ACK, acked, 0))
            if self._unsent:
                offset, data = self._unsent.popleft()
                rest = memoryview(data)[max(cursor - offset, 0) :]
                writer.writelines((HEAD.pack(DATA, offset + len(data) - len(rest), len(rest)), rest))
                await writer.drain()
                continue
            if self.ended and not told_end:
                told_end = True
                writer.write(HEAD.pack(END, self.taken, 0))
            await writer.drain()
            await self._more.wait()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind, offset, size = HEAD.unpack(await reader.readexactly(HEAD.size))
            if kind == DATA and size <= LARGEST:
                data = await reader.readexactly(size)
                if offset > self.received or self.received - self.delivered > 2 * WINDOW:
                    raise Broken(f"{offset} comes after {self.received}, of which {self.delivered} were handed on")
                if data := data[self.received - offset :]:  # the rest came over the link before this one
                    self.received += len(data)
                    self._inbox.put_nowait(data)
            elif kind == ACK and offset <= self.taken:
                self._trim(offset)
            elif kind == END and offset == self.received:
                if not self._ending:
                    self._ending = True
                    self._inbox.put_nowait(None)
            else:
                raise Broken(f"kind {kind} at {offset} with {size} bytes")

    def _trim(self, upto: int) -> None:
        self.acked = max(self.acked, upto)
        while self._unacked and self._unacked[0][0] + len(self._unacked[0][1]) <= self.acked:
            self._unacked.popleft()
        self._room.set()


class Relay:
    """The command, its stream, and whoever of the agent is connected."""

    def __init__(self, folder: str, command: list[str]) -> None:
        self._folder = folder
        self._command = command
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._local = ours
        ready, told = os.pipe()
        self._ready_fd = ready
        for fd, number in ((theirs.detach(), PAGES_FD), (told, READY_FD)):
            os.dup2(fd, number, inheritable=True)
            os.close(fd)
        self.stream = Stream(ours)
        self._child: asyncio.subprocess.Process | None = None
        self._ready = False
        self._code: int | None = None
        self._controls: set[asyncio.StreamWriter] = set()
        self._link: asyncio.StreamWriter | None = None
        self._linking = asyncio.Lock()
        self._guard: tuple[str, str] | None = None
        self._over = asyncio.Event()
        self._work: list[asyncio.Task[None]] = []

    async def serve(self, up: Callable[[], None]) -> None:
        """Until it is told to stop; `up` is called when the agent can connect."""
        await asyncio.start_unix_server(self._linked, f"{self._folder}/link", limit=LARGEST)
        await asyncio.start_unix_server(self._controlled, f"{self._folder}/control")
        up()
        await self._over.wait()

    # --- the agent ---

    async def _controlled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._controls.add(writer)
        if self._ready:
            writer.write(b"ready\n")
        if self.stream.hung_up.is_set():
            writer.write(b"hung-up\n")
        if self._code is not None:
            writer.write(b"ended %d\n" % self._code)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                await self._obey(line.decode().split())
        self._controls.discard(writer)
        writer.close()

    async def _obey(self, words: list[str]) -> None:
        match words:
            case ["start"] if self._child is None:
                await self._start()
            case ["guard", file, word]:
                self._guard = (file, word)
                self._protect()
            case ["stop"]:
                await self._stop(kill=False)
            case ["kill"]:
                await self._stop(kill=True)

    def _tell(self, line: bytes) -> None:
        for writer in self._controls:
            writer.write(line)

    # --- the command ---

    async def _start(self) -> None:
        with open(f"{self._folder}/output", "wb", buffering=0) as output:  # noqa: PTH123, ASYNC230 - on a tmpfs
            try:
                self._child = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(PAGES_FD, READY_FD),
                    start_new_session=True,
                    cwd=self._folder,
                )
            except OSError as error:
                output.write(f"{self._command[0]} can't be started: {error}\n".encode())
                self._note_end(NOT_STARTED)
                return
        os.close(PAGES_FD)
        os.close(READY_FD)
        work = (self.stream.pull(), self.stream.deliver(), self._wait(self._child), self._hung_up())
        self._work = [asyncio.create_task(each) for each in work]
        asyncio.get_running_loop().add_reader(self._ready_fd, self._hear)

    def _hear(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ready_fd)
        if os.read(self._ready_fd, 1):
            self._ready = True
            self._tell(b"ready\n")

    async def _hung_up(self) -> None:
        await self.stream.hung_up.wait()
        self._tell(b"hung-up\n")

    async def _wait(self, child: asyncio.subprocess.Process) -> None:
        self._note_end(await child.wait())

    def _note_end(self, code: int) -> None:
        self._code = code
        self._protect()
        part = f"{self._folder}/ended.part"
        with open(part, "w") as file:  # noqa: PTH123 - on a tmpfs
            file.write(str(code))
        os.rename(part, f"{self._folder}/ended")  # noqa: PTH104
        self._tell(b"ended %d\n" % code)

    def _protect(self) -> None:
        """Hold the tasks whose pages nobody brings any more, before they take for zeros what they had there."""
        if self._guard is not None and self._code:
            with contextlib.suppress(OSError), open(self._guard[0], "w") as file:  # noqa: PTH123 - a cgroup's file
                file.write(self._guard[1])

    async def _stop(self, *, kill: bool) -> None:
        """Hang up, or kill the command; when it has ended this does. A page server that is hung up on leaves its tasks
        whole; however long it takes, nobody may cut it off.
        """
        for work in self._work[:2]:
            work.cancel()
        await asyncio.gather(*self._work[:2], return_exceptions=True)
        self._local.close()
        if self._child is not None and self._code is None:
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
            await asyncio.wait({self._work[2]})
        self._over.set()

    # --- the other end ---

    async def _linked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._link is not None:
            self._link.transport.abort()
        self._link = writer
        async with self._linking:  # the old one may have a word in its hands still
            if self._link is writer:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, Broken):
                    await self.stream.over(reader, writer)
        writer.transport.abort()


def main(argv: list[str]) -> int:
    """Return 0 once there is an end in the background: a child of nobody, since an agent that stops ends its own."""
    up, told = os.pipe()
    if os.fork():
        os.close(told)
        return 0 if os.read(up, 1) else 1
    folder, at = argv[0], argv.index("--")
    os.setsid()
    told = os.dup2(told, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # what uvloop has left open in its children, or the agent waits for us
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with open(f"{folder}/log", "ab") as log, open(os.devnull, "rb") as nothing:  # noqa: PTH123 - starts in milliseconds
        for fd, number in ((nothing.fileno(), 0), (log.fileno(), 1), (log.fileno(), 2)):
            os.dup2(fd, number)

    def is_up() -> None:
        os.write(told, b"1")
        os.close(told)

    async def serve() -> None:
        await Relay(folder, argv[at + 1 :]).serve(is_up)

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
