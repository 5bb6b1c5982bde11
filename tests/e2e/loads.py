"""Clients that keep one connection each through every move, and count what was acknowledged. Run as `python loads.py`.

Each prints one JSON line at its end; standard library only, since they run at the lab's client.
"""

import json
import socket
import sys
import time


def _connect(address: str, port: int) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection((address, port), timeout=60)
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{address}:{port} does not answer")


def redis(address: str, seconds: float) -> dict[str, object]:
    """INCR on one connection: each answer must be one more than the one before."""
    connection = _connect(address, 6379)
    file = connection.makefile("rwb")
    end, number, widest = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        file.write(b"INCR n\r\n")
        file.flush()
        answer = file.readline()
        widest = max(widest, time.monotonic() - began)
        if answer != b":%d\r\n" % (number + 1):
            return {"ok": False, "after": number, "answer": answer.decode(errors="replace")}
        number += 1
    return {"ok": True, "acknowledged": number, "widest_s": widest}


def http(address: str, seconds: float) -> dict[str, object]:
    """GET on one kept-alive connection: each answer whole, and never another one."""
    connection = _connect(address, 80)
    file = connection.makefile("rwb")
    end, number, widest = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        file.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        file.flush()
        status, length = file.readline(), 0
        while (line := file.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = file.read(length)
        widest = max(widest, time.monotonic() - began)
        if b" 200 " not in status or len(body) != length:
            return {"ok": False, "after": number, "answer": status.decode(errors="replace")}
        number += 1
        if number % 900 == 0:  # nginx closes a connection after 1000 requests; do it ourselves, before
            connection.close()
            connection = _connect(address, 80)
            file = connection.makefile("rwb")
    return {"ok": True, "acknowledged": number, "widest_s": widest}


if __name__ == "__main__":
    kind, where, duration = sys.argv[1:4]
    print(json.dumps({"redis": redis, "http": http}[kind](where, float(duration))))
