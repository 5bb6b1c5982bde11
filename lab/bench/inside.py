"""Runs in the container that is moved: ticks every millisecond, writes to its memory, and tells the widest gap.

Handed to `python3 -c`, hence the standard library only. Arguments: MiB of memory, and a port.
A line of a client is answered with the widest gap and the sum of long ones in ms; `0` begins anew.
"""

import gc
import os
import socket
import sys
import threading
import time

TICK = 0.001
PAGE = 4096
STRIDE = 61 * PAGE  # neighbours in time are not neighbours in memory
NOISE_MIB = 64  # of it the memory is made; wider than what a compressor looks back to
LONG = 0.010


class Ticker:
    """The loop whose gaps are the blackout."""

    def __init__(self, mib: int) -> None:
        noise = os.urandom(min(mib, NOISE_MIB) << 20)
        self.memory = bytearray(mib << 20)
        for at in range(0, len(self.memory), len(noise)):
            # The last piece may be a shorter one; a longer would make the memory grow.
            piece = memoryview(noise)[: len(self.memory) - at]
            self.memory[at : at + len(piece)] = piece
        self.widest = self.long = 0.0
        self.anew = False

    def run(self) -> None:
        at, page, size = 0, os.urandom(PAGE), len(self.memory)
        # Not the monotonic clock: CRIU restores into a time namespace in which it goes on as if nothing had been.
        last = time.time()
        while True:
            time.sleep(TICK)
            now = time.time()
            gap, last = now - last, now
            if self.anew:
                self.widest = self.long = 0.0
                self.anew = False
            self.widest = max(self.widest, gap)
            if gap > LONG:
                self.long += gap
            self.memory[at : at + PAGE] = page
            at = (at + STRIDE) % size


def serve(ticker: Ticker, connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with connection, connection.makefile("rwb") as lines:
            for line in lines:
                if line == b"0\n":
                    ticker.anew = True
                lines.write(b"%.3f %.3f\n" % (ticker.widest * 1000, ticker.long * 1000))
                lines.flush()
    except OSError:
        return  # the client has gone


def listen(ticker: Ticker, port: int) -> None:
    with socket.create_server(("", port)) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(ticker, connection), daemon=True).start()


def main() -> None:
    mib, port = sys.argv[1:]
    gc.disable()
    ticker = Ticker(int(mib))
    threading.Thread(target=listen, args=(ticker, int(port)), daemon=True).start()
    ticker.run()


if __name__ == "__main__":
    main()
