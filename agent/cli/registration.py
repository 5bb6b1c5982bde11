"""dockerd learns of the runtime: one key in its daemon.json, and a SIGHUP. No restart, nothing else changed.

Whatever is against it is found before anything is written: a file that is no JSON, a dockerd that reads another file,
a flag that says something else. A dockerd that does not take the change gets its old file back.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.base.errors import DockerFailed, Refused
from protocol.errors import ErrorCode

RELOAD_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.1
API_SECONDS: Final = 5.0
DEFAULT_FILE: Final = "/etc/docker/daemon.json"
BACKUP_SUFFIX: Final = ".before-transship"


# --- the file


@dataclass(frozen=True, slots=True)
class DaemonJson:
    """dockerd's settings as they lie on disk."""

    file: Path
    text: str | None
    """None: there is no such file."""
    content: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> "DaemonJson":
        """Read it.

        Raises:
            Refused: it is no JSON object, or its runtimes are not one.

        """
        try:
            text = file.read_text()
        except FileNotFoundError:
            return cls(file, None, {})
        try:
            content = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise Refused(
                ErrorCode.BAD_COMMAND,
                f"{file} is not valid JSON: {error}",
                hint="dockerd could not start with it either: mend it first, nothing was changed",
            ) from None
        if not isinstance(content, dict) or not isinstance(content.get("runtimes", {}), dict):
            raise Refused(ErrorCode.BAD_COMMAND, f"{file} is not what dockerd reads: no object, or runtimes is none")
        return cls(file, text, content)

    def with_runtime(self, name: str, path: Path) -> Mapping[str, Any]:
        runtimes = {**self.content.get("runtimes", {}), name: {"path": str(path)}}
        return {**self.content, "runtimes": runtimes}

    def without_runtime(self, name: str) -> Mapping[str, Any]:
        runtimes = {key: value for key, value in self.content.get("runtimes", {}).items() if key != name}
        rest = {key: value for key, value in self.content.items() if key != "runtimes"}
        return {**rest, "runtimes": runtimes} if runtimes else rest

    @property
    def backup(self) -> Path:
        return self.file.with_name(self.file.name + BACKUP_SUFFIX)

    def written(self, content: Mapping[str, Any]) -> str:
        """The content as text, indented as the file was."""
        return json.dumps(content, indent=_indent(self.text or ""), ensure_ascii=False) + "\n"


def _indent(text: str) -> str | int:
    """What the first indented line begins with; a file on one line gets the field's two spaces."""
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found.group(1) if found else 2


def write_atomically(file: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file as a whole; one that is there keeps its mode and owner, and a link keeps pointing at it."""
    real = Path(os.path.realpath(file))
    real.parent.mkdir(parents=True, exist_ok=True)
    new = real.with_name(f".{real.name}.{os.getpid()}.new")
    try:
        with new.open("x") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            old = real.stat()
            mode = old.st_mode & 0o7777
            os.chown(new, old.st_uid, old.st_gid)
        new.chmod(mode)
        new.replace(real)
    finally:
        new.unlink(missing_ok=True)


# --- the process


@dataclass(frozen=True, slots=True)
class Dockerd:
    """The dockerd of this host, as it was started."""

    pid: int
    arguments: tuple[str, ...]

    def values(self, flag: str) -> list[str]:
        """All values of `--flag VALUE` and `--flag=VALUE`."""
        words = self.arguments
        return [
            word.partition("=")[2] if "=" in word else words[at + 1]
            for at, word in enumerate(words)
            if (word == flag and at + 1 < len(words)) or word.startswith(flag + "=")
        ]

    def config_file(self) -> Path:
        return Path((self.values("--config-file") or [DEFAULT_FILE])[-1])

    def reload(self) -> None:
        os.kill(self.pid, signal.SIGHUP)


def find_dockerd(root: Path = Path("/")) -> Dockerd | None:
    """The running dockerd: by its pid file, else by its name among the processes of this very host.

    Raises:
        Refused: there are several, and no pid file says which.

    """
    proc = root / "proc"
    for file in (root / "run/docker.pid", root / "var/run/docker.pid"):
        with contextlib.suppress(OSError, ValueError):
            if dockerd := _look_up(proc, int(file.read_text())):
                return dockerd
    ours = _namespaces(proc / "self")
    pids = [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()]
    # A dockerd in a container is seen here too; it is not this host's.
    found = [one for pid in sorted(pids) if _namespaces(proc / str(pid)) == ours and (one := _look_up(proc, pid))]
    if len(found) > 1:
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"several dockerd run here ({', '.join(str(one.pid) for one in found)})",
            hint="the one that is meant must have its pid in /run/docker.pid",
        )
    return found[0] if found else None


def _look_up(proc: Path, pid: int) -> Dockerd | None:
    try:
        if (proc / str(pid) / "comm").read_text().strip() != "dockerd":
            return None
        words = (proc / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    return Dockerd(pid, tuple(word.decode(errors="replace") for word in words))


def _namespaces(process: Path) -> tuple[str, ...]:
    try:
        return tuple(os.readlink(process / "ns" / name) for name in ("pid", "mnt"))  # noqa: PTH115 - no path
    except OSError:
        return ()


class DockerApi:
    """Two questions to dockerd, for a program that runs before the agent does."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("unix://")

    def get(self, resource: str) -> Any:
        """Ask.

        Raises:
            DockerFailed: it does not answer, or not as it should.

        """
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", resource, headers={"Host": "docker"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.client.OK:
                raise DockerFailed(f"dockerd answers {answer.status} to {resource}", http_status=answer.status)
            return json.loads(body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DockerFailed(f"dockerd does not answer at {self._path}: {error}", hint="is it running?") from error
        finally:
            connection.close()

    def runtimes(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.get("/info").get("Runtimes") or {}
        return found

    def users_of_runtime(self, name: str) -> list[str]:
        """The containers that were made with a runtime, and can't be started without it."""
        users = []
        for one in self.get("/containers/json?all=true"):
            with contextlib.suppress(DockerFailed):  # gone meanwhile
                details = self.get(f"/containers/{one['Id']}/json")
                if details.get("HostConfig", {}).get("Runtime") == name:
                    users.append(details["Name"].lstrip("/"))
        return users


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=API_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


# --- both together


def check_flags(dockerd: Dockerd, file: Path, name: str, path: Path) -> None:
    """See that dockerd reads this file and that its flags leave the runtime to it.

    Raises:
        Refused: they do not.

    """
    theirs = dockerd.config_file()
    if theirs.resolve() != file.resolve():
        raise Refused(
            ErrorCode.BAD_COMMAND,
            f"dockerd (pid {dockerd.pid}) reads {theirs}, not {file}",
            hint=f"run this again with --daemon-json {theirs}",
        )
    for value in dockerd.values("--add-runtime"):
        key, _, flagged = value.partition("=")
        if key == name and flagged != str(path):
            raise Refused(
                ErrorCode.BAD_COMMAND,
                f"dockerd was started with --add-runtime {value}, which would stand against {file}",
                hint="take that flag out of the service of dockerd, and restart it when that suits you",
            )


def apply(
    before: DaemonJson, content: Mapping[str, Any], dockerd: Dockerd | None, taken: Callable[[], bool], *, what: str
) -> None:
    """Write daemon.json, have dockerd read it and wait until it has; else put the old one back.

    Raises:
        DockerFailed: dockerd has not taken it in time.

    """
    write_atomically(before.file, before.written(content))
    if dockerd is None:
        return  # it will read the file when it starts
    dockerd.reload()
    if wait_until(taken, RELOAD_SECONDS):
        return
    if before.text is None:
        before.file.unlink()
    else:
        write_atomically(before.file, before.text)
    dockerd.reload()
    raise DockerFailed(
        f"dockerd (pid {dockerd.pid}) was told to reload {before.file}, and has not {what} in {RELOAD_SECONDS:g} s",
        hint="its log says why; the file is as it was before",
    )


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again; dockerd does not tell when it has reloaded."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(DockerFailed):
            if true():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
