"""What runs in the containers of a campaign, and the client that counts what was acknowledged. Standard library only.

`serve FILE...` counts in memory, appends each number to every file and prints it, and answers records on port 7000; it
draws a token when it starts, so that a process that was started anew is told from one that goes on. `client ADDRESS`
sends numbered records over one connection that must not break and says every now and then how far it is.
"""

import contextlib
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator

PORT = 7000
PAUSE_SECONDS = 0.02
PATIENCE_SECONDS = 120.0
TCP_RTO_MAX_MS = 44
LONGEST_RTO_MS = 500


def last_number(path: str) -> int:
    try:
        with open(path) as file:  # noqa: PTH123 - it starts with as few modules as can be
            lines = file.read().split("\n")
    except OSError:
        return 0
    return max((int(line.split()[0]) for line in lines[:-1] if line and line[0].isdigit()), default=0)


def write_all(handle: int, line: bytes) -> None:
    """Also where the disk is full for a while: what was counted is written, once."""
    while line:
        try:
            line = line[os.write(handle, line) :]
        except OSError:
            time.sleep(PAUSE_SECONDS)


def count(paths: list[str], token: str, mib: int, state: dict[str, int]) -> None:
    ballast = bytearray(mib << 20)
    for page in range(0, len(ballast), 4096):
        ballast[page] = page >> 12 & 255
    handles = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in paths]
    number = max(last_number(path) for path in paths)
    for handle, path in zip(handles, paths, strict=True):
        for missed in range(last_number(path) + 1, number + 1):  # a power cut came between two files
            write_all(handle, f"{missed} {token} {state['records']}\n".encode())
    while True:
        number += 1
        ballast[number * 4096 % len(ballast)] = number & 255
        for handle in handles:
            write_all(handle, f"{number} {token} {state['records']}\n".encode())
        write_all(1, f"{number}\n".encode())
        time.sleep(PAUSE_SECONDS)


def lines(connection: socket.socket) -> Iterator[bytes]:
    poller, rest = select.poll(), b""
    poller.register(connection, select.POLLIN)
    while poller.poll() and (data := connection.recv(4096)):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def answer(connection: socket.socket, token: str, state: dict[str, int]) -> None:
    """Each record has to be the next one; the answer is its number and who has counted it.

    It waits as event loops do, not in a read: that is what a connection which CRIU was killed over needs.
    """
    for line in lines(connection):
        number = int(line)
        wrong = number != state["records"] + 1
        if not wrong:
            state["records"] = number
        connection.sendall(f"{number} {token} {'BROKEN after ' + str(state['records']) if wrong else 'ok'}\n".encode())


def serve(mib: int, paths: list[str]) -> None:
    token, state = secrets.token_hex(4), {"records": 0}
    threading.Thread(target=count, args=(paths, token, mib, state), daemon=True).start()
    with socket.create_server(("", PORT), reuse_port=False) as server:
        while True:
            connection, _ = server.accept()
            state["records"] = 0
            threading.Thread(target=answer, args=(connection, token, state), daemon=True).start()


def connected(address: str) -> socket.socket:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            connection = socket.create_connection((address, PORT), timeout=2)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            connection.settimeout(PATIENCE_SECONDS)
            # After a cut cable it asks again soon: a campaign has no minutes for a doubled pause.
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, LONGEST_RTO_MS)
            return connection


def client(address: str) -> None:
    connection = connected(address)
    file, acknowledged, said, token = connection.makefile("rb"), 0, 0.0, ""
    wrong = ""
    while not wrong:
        try:
            connection.sendall(b"%d\n" % (acknowledged + 1))
            reply = file.readline().decode().split(None, 2)
        except OSError as error:
            wrong = f"{type(error).__name__}: {error}"
            break
        if len(reply) != 3 or reply[0] != str(acknowledged + 1) or reply[2].strip() != "ok":
            wrong = f"after {acknowledged}: {' '.join(reply) or 'the connection ended'}"
        elif token and reply[1] != token:
            wrong = f"record {reply[0]} was answered by another process"
        else:
            acknowledged, token = acknowledged + 1, reply[1]
        if time.monotonic() - said > 0.1:
            said = time.monotonic()
            print(json.dumps({"acknowledged": acknowledged, "token": token}), flush=True)
        time.sleep(PAUSE_SECONDS)
    print(json.dumps({"acknowledged": acknowledged, "token": token, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3:])
    else:
        client(sys.argv[2])
