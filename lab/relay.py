"""Carries TCP connections from this machine's loopback into a lab's network; a process of its own.

Started by `lab.broker` inside the lab's network namespace with a listening socket that was opened outside of it:
a socket stays in the namespace where it was made. Run by path, with the standard library only.
Arguments: the socket's file descriptor, then host and port to connect to.
"""

import asyncio
import contextlib
import socket
import sys


async def relay(listener: socket.socket, host: str, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    server = await asyncio.start_server(carry, sock=listener)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    # One side has ended: the other one sees the end too, also when the broker was killed.
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
