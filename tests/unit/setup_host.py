"""A host below a temporary folder, with a dockerd that only reloads. No tests."""

import http.server
import json
import signal
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import registration
from agent.cli.setup import Places


class FakeDockerd:
    """Answers /info and /containers on a socket; reads its file when it is told to, as dockerd does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pid = 4242
        self.file = root / "etc/docker/daemon.json"
        self.socket = root / "run/docker.sock"
        self.listed: dict[str, Any] = {"runc": {"path": "runc"}}
        self.containers: dict[str, str] = {}
        self.deaf = False
        self.reloads = 0
        self.flags = ["--config-file", str(self.file)]

    def start(self) -> None:
        proc = self.root / "proc" / str(self.pid)
        proc.mkdir(parents=True)
        (proc / "comm").write_text("dockerd\n")
        (proc / "cmdline").write_bytes(b"\0".join(word.encode() for word in ["/usr/bin/dockerd", *self.flags]) + b"\0")
        (self.root / "run/docker.pid").write_text(f"{self.pid}")

    def reload(self) -> None:
        """A key that is not in the file keeps its value: that is what dockerd does."""
        self.reloads += 1
        content = json.loads(self.file.read_text()) if self.file.exists() else {}
        if not self.deaf and "runtimes" in content:
            self.listed = {"runc": {"path": "runc"}, **content["runtimes"]}

    def answer(self, path: str) -> Any:
        if path == "/info":
            return {"Runtimes": self.listed}
        if path.startswith("/containers/json"):
            return [{"Id": name} for name in self.containers]
        name = path.split("/")[2]
        return {"Name": f"/{name}", "HostConfig": {"Runtime": self.containers[name]}}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDockerd]:
    for folder in ("run", "proc/self", "etc/docker"):
        (tmp_path / folder).mkdir(parents=True)
    fake = FakeDockerd(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(fake.answer(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "socket"

        def log_message(self, *args: object) -> None:
            pass

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (fake.pid, signal.SIGHUP)
        fake.reload()

    monkeypatch.setattr("agent.cli.registration.os.kill", kill)
    monkeypatch.setattr(registration, "RELOAD_SECONDS", 0.2)
    server = _Server(str(fake.socket), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


def places(dockerd: FakeDockerd, tmp_path: Path) -> Places:
    return Places(
        root=tmp_path,
        settings=tmp_path / "etc/transship/agent.toml",
        daemon_json=dockerd.file,
        docker=f"unix://{dockerd.socket}",
    )


def runtimes(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())["runtimes"])
