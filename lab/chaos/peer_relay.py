"""The wire between the two agents: each is reached through here, at an address of the switch, and here it can break.

What is sent is TLS, so a changed bit is found by the receiver's TLS, as on any wire where TCP's checksum has let it
through; a stream that is cut off ends like a connection that somebody between the two has closed.
"""

import asyncio
import contextlib
import enum
import random
import socket
from collections.abc import Callable

from agent.network.namespace import within_path
from lab.lab import Lab
from lab.network import Address

PORT = 7443
_CHUNK = 65536


class Harm(enum.StrEnum):
    """What is done to the next bytes that go one way."""

    FLIP = "flip"
    TRUNCATE = "truncate"


class PeerRelay:
    """Carries connections to one host's peer port; in the campaign's own process, with its sockets at the switch."""

    def __init__(self, lab: Lab, host: str, address: Address) -> None:
        self._lab = lab
        self._to = lab[host].node.address.v4
        self.address = address
        self._harm: Harm | None = None
        self._dice = random.Random(0)
        self.harmed = 0
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        namespace = self._lab.switch.namespace
        namespace.ip(f"address replace {self.address.v4}/24 dev br0")
        listener = within_path(str(namespace.path), lambda: socket.create_server((self.address.v4, PORT)))
        self._server = await asyncio.start_server(self._carry, sock=listener)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def harm(self, how: Harm, seed: int) -> None:
        """Do this once, to the next bytes towards the host that are many enough to be content."""
        self._harm, self._dice = how, random.Random(seed)

    def mend(self) -> None:
        self._harm = None

    def _made_there(self) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket()
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 8000)
            return made

        return within_path(str(self._lab.switch.namespace.path), make)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        ends, there = [writer], self._made_there()
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(there, (self._to, PORT)), 5)
                back, on = await asyncio.open_connection(sock=there)
                ends.append(on)
                await asyncio.gather(
                    self._copy(reader, on, self._harmed), self._copy(back, writer, lambda data: (data, False))
                )
        finally:
            self._carrying.discard(task)
            for end in ends:  # also of one that is cancelled
                end.close()
            if len(ends) == 1:
                there.close()

    def _harmed(self, data: bytes) -> tuple[bytes, bool]:
        """What becomes of bytes on their way to the host; and whether nothing more comes."""
        if self._harm is None:
            return data, False
        how, self._harm = self._harm, None
        self.harmed += 1
        at = self._dice.randrange(len(data))
        if how is Harm.TRUNCATE:
            return data[:at], True
        changed = bytearray(data)
        changed[at] ^= 1 << self._dice.randrange(8)
        return bytes(changed), False

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], tuple[bytes, bool]]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                passed, last = change(data)
                writer.write(passed)
                await writer.drain()
                if last:
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
