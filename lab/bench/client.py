"""Runs at the lab's client: one TCP connection to the container, a request every millisecond, and the widest gap.

Run by path with the standard library only. Arguments: `ticker` or `redis`, address, port. Reads commands on standard
input: `mark` begins anew, `tell` says what was found, `fill MIB` (redis) makes that much data; each is answered with a
line of JSON, once an answer from the container has come after it. A broken connection is made again, and counted.
"""

import io
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import Any

PAUSE = 0.001
AGAIN = 0.02
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 150.0  # longer than the last but one retransmission of a two-minute blackout
VALUE, BATCH, KEYS = 1024, 10, 20_000
FILL = 64 << 10
NOISE = 64 << 20  # wider than what a compressor looks back to


class Client:
    """The connection and what was seen of it."""

    def __init__(self, kind: str, address: str, port: int) -> None:
        self.kind, self.address, self.port = kind, address, port
        self.commands: queue.Queue[str] = queue.Queue()
        self.lines: io.BufferedRWPair | None = None
        self.noise = os.urandom(NOISE if kind == "redis" else 0)
        self.number = 0
        self.widest = 0.0
        self.answers = self.broken = 0
        self.inside = (0.0, 0.0)

    def run(self) -> None:
        last = time.monotonic()
        waiting: str | None = None
        while True:
            if waiting is None and not self.commands.empty():
                waiting = self.commands.get()
            if not self.ask(waiting or ""):
                time.sleep(AGAIN)
                continue
            now = time.monotonic()
            self.widest, last = max(self.widest, now - last), now
            self.answers += 1
            if waiting:
                self.answer(waiting)
                waiting, last = None, time.monotonic()
            time.sleep(PAUSE)

    def answer(self, command: str) -> None:
        if command == "mark":
            self.widest, self.answers, self.broken = 0.0, 0, 0
        found: dict[str, Any] = {"gap_ms": self.widest * 1000, "answers": self.answers, "broken": self.broken}
        found |= {"widest_ms": self.inside[0], "long_ms": self.inside[1]}
        print(json.dumps(found), flush=True)

    def ask(self, command: str) -> bool:
        """One request, or as many as the command needs; whether there was an answer."""
        try:
            if self.lines is None:
                self.connect()
            if command.startswith("fill"):
                self.fill(int(command.split()[1]))
            elif self.kind == "redis":
                self.set(BATCH, VALUE, KEYS)
            else:
                self.line(b"0\n" if command == "mark" else b"?\n")
        except OSError:
            # Before the first connection the container is only starting.
            self.broken += self.lines is not None
            self.lines = None
            return False
        return True

    def connect(self) -> None:
        connection = socket.create_connection((self.address, self.port), timeout=CONNECT_SECONDS)
        connection.settimeout(ANSWER_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = connection.makefile("rwb")

    def line(self, question: bytes) -> None:
        words = self.exchange(question, 1)[0].split()
        self.inside = (float(words[0]), float(words[1]))

    def set(self, count: int, size: int, keys: int) -> None:
        request = b""
        for _ in range(count):
            self.number += 1
            at = self.number * size % (len(self.noise) - size)
            key = b"key:%d:%d" % (size, self.number % keys)
            request += b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size)
            request += self.noise[at : at + size] + b"\r\n"
        if any(answer != b"+OK\r\n" for answer in self.exchange(request, count)):
            raise OSError("not what redis says")

    def fill(self, mib: int) -> None:
        count = (mib << 20) // FILL
        for _ in range(0, count, BATCH):
            self.set(BATCH, FILL, count)

    def exchange(self, request: bytes, answers: int) -> list[bytes]:
        assert self.lines is not None
        self.lines.write(request)
        self.lines.flush()
        lines = [self.lines.readline() for _ in range(answers)]
        if not all(line.endswith(b"\n") for line in lines):
            raise OSError("the other side has closed the connection")
        return lines


def main() -> None:
    kind, address, port = sys.argv[1:]
    client = Client(kind, address, int(port))
    threading.Thread(target=client.run, daemon=True).start()
    for line in sys.stdin:
        client.commands.put(line.strip())


if __name__ == "__main__":
    main()
