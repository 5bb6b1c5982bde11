"""Carries folders and files from one machine to another over one plain TCP connection: what a shell would use nc for.

Handed to `python3 -c`: standard library only. `receive PORT` says `ready` and writes what comes. `send HOST PORT` says
`ready` once connected, reads one line of JSON (pairs of a path here and a path there) and says `done` when it is there.
"""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20


def receive(port: int) -> None:
    with socket.create_server(("", port)) as server:
        print("ready", server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    with connection, connection.makefile("rb") as stream:
        while entry := json.loads(stream.readline() or "{}"):
            path, kind = Path(entry["path"]), entry["kind"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir(exist_ok=True)
            elif kind == "link":
                path.symlink_to(entry["target"])
            else:
                _write(stream, path, entry["size"])
            if kind != "link":
                path.chmod(entry["mode"])
        connection.sendall(b"!")


def _write(stream: BinaryIO, path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        while size:
            piece = stream.read(min(size, CHUNK))
            if not piece:
                raise SystemExit("the sender has gone")
            file.write(piece)
            size -= len(piece)


def send(host: str, port: int) -> None:
    connection = socket.create_connection((host, port), timeout=10)
    connection.settimeout(None)
    print("ready", flush=True)
    for here, there in json.loads(sys.stdin.readline()):
        for path, name in _walk(Path(here), Path(there)):
            _send(connection, path, str(name))
    connection.sendall(b"{}\n")
    if connection.recv(1) != b"!":
        raise SystemExit("the receiver has gone")
    print("done", flush=True)


def _walk(here: Path, there: Path) -> Iterator[tuple[Path, Path]]:
    yield here, there
    if here.is_dir() and not here.is_symlink():
        for path in sorted(here.rglob("*")):
            yield path, there / path.relative_to(here)


def _send(connection: socket.socket, path: Path, name: str) -> None:
    status = path.lstat()
    entry: dict[str, object] = {"path": name, "mode": status.st_mode & 0o7777}
    if path.is_symlink():
        entry |= {"kind": "link", "target": str(path.readlink())}
    elif path.is_dir():
        entry |= {"kind": "folder"}
    else:
        entry |= {"kind": "file", "size": status.st_size}
    connection.sendall(json.dumps(entry).encode() + b"\n")
    if entry["kind"] == "file" and status.st_size:
        with path.open("rb") as file:
            connection.sendfile(file)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]))
