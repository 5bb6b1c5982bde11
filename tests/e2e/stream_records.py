"""Two sides that send each other numbered, checksummed records at full speed, over a connection that must not break.

`partner` runs where the moves happen: a process for each port that it listens on and each address that it connects to.
`drive` is the other end of one such connection: until it gets SIGTERM it sends and receives, saying every now and then
how far it is, and at the end whether anything was missing, came twice, or was not what was sent. Standard library only.
"""

import argparse
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import zlib

HEADER = struct.Struct("!QII")
"""Number, length, checksum of the content."""
NOISE = random.Random(77).randbytes(1 << 17)
LONGEST = 1 << 15
SAY_SECONDS = 0.2
PATIENCE = 120.0
"""Seconds without a byte after which a side gives up: nobody may wait for ever."""


class Broken(Exception):
    """What a receiver found wrong."""


def content(number: int) -> bytes:
    """What a record of this number has to have in it: a length and a place in the noise, by its number."""
    length = 1 + number * 7919 % LONGEST
    at = number * 104729 % (len(NOISE) - LONGEST)
    return NOISE[at : at + length]


class Side:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self._connection = connection
        self._file = connection.makefile("rb", buffering=1 << 16)
        self.sent = self.received = self.bytes = 0
        self.widest = 0.0
        self.stop = threading.Event()

    def send(self) -> None:
        """Records until it is to stop; then one of length 0 with the next number, and no more."""
        while not self.stop.is_set():
            self.sent += 1
            data = content(self.sent)
            self._connection.sendall(HEADER.pack(self.sent, len(data), zlib.crc32(data)) + data)
        self._connection.sendall(HEADER.pack(self.sent + 1, 0, 0))

    def receive(self) -> None:
        """Records until the one of length 0."""
        last = time.monotonic()
        while True:
            number, length, checksum = HEADER.unpack(self._exactly(HEADER.size))
            if number != self.received + 1:
                raise Broken(f"record {number} after {self.received}")
            data = self._exactly(length)
            now = time.monotonic()
            self.widest, last = max(self.widest, now - last), now
            if length == 0:
                return
            if zlib.crc32(data) != checksum or data != content(number):
                raise Broken(f"record {number} is not what was sent")
            self.received += 1
            self.bytes += length

    def _exactly(self, length: int) -> bytes:
        data: bytes = self._file.read(length)
        if len(data) != length:
            raise Broken(f"the connection ended after record {self.received}")
        return data

    def say(self, line: dict[str, object]) -> None:
        self._connection.sendall(json.dumps(line).encode() + b"\n")

    def hear(self) -> dict[str, object]:
        heard: dict[str, object] = json.loads(self._file.readline())
        return heard

    def state(self) -> dict[str, object]:
        return {
            "sent": self.sent,
            "received": self.received,
            "mib": self.bytes >> 20,
            "widest_s": round(self.widest, 3),
        }


def partner(connection: socket.socket) -> None:
    """Send and receive until the other side is done; then tell it what was received here."""
    side = Side(connection)
    sender = threading.Thread(target=side.send, daemon=True)
    sender.start()
    wrong = ""
    try:
        side.receive()
    except (OSError, Broken) as error:
        wrong = f"{type(error).__name__}: {error}"
    side.stop.set()
    sender.join()
    side.say({"received": side.received, "wrong": wrong})


def drive(connection: socket.socket) -> dict[str, object]:
    side, failed = Side(connection), []
    signal.signal(signal.SIGTERM, lambda *_: side.stop.set())

    def work(what: str) -> None:
        try:
            getattr(side, what)()
        except (OSError, Broken) as error:
            failed.append(f"{what}: {type(error).__name__}: {error}")
            side.stop.set()

    threads = [threading.Thread(target=work, args=(what,), daemon=True) for what in ("send", "receive")]
    for thread in threads:
        thread.start()
    while not side.stop.wait(SAY_SECONDS):
        print(json.dumps(side.state()), flush=True)
    for thread in threads:
        thread.join(PATIENCE)
    if not failed:
        there = side.hear()
        if there != {"received": side.sent, "wrong": ""}:
            failed.append(f"{side.sent} were sent, there: {there}")
    return {"ok": not failed, "wrong": failed, **side.state()}


def parse(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address, int(port)


def listening(port: int) -> socket.socket:
    """For IPv4 and IPv6."""
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)


def connected(address: tuple[str, int]) -> socket.socket:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def run_partner(ports: list[int], addresses: list[tuple[str, int]]) -> None:
    for port in ports:
        if os.fork() == 0:
            with listening(port) as server:
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=partner, args=(connection,)).start()
    for address in addresses:
        if os.fork() == 0:
            partner(connected(address))
            os._exit(0)
    print("ready", flush=True)
    while True:
        signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["partner", "drive"])
    parser.add_argument("--listen", type=int, action="append", default=[])
    parser.add_argument("--connect", type=parse, action="append", default=[])
    options = parser.parse_args()
    if options.role == "partner":
        run_partner(options.listen, options.connect)
    elif options.listen:
        with listening(options.listen[0]) as server:
            server.settimeout(PATIENCE)
            connection, _ = server.accept()
    else:
        connection = connected(options.connect[0])
    found = drive(connection)
    print(json.dumps(found), flush=True)
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
