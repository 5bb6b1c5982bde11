"""The agent on a lab host: how it gets there, and its life as a service.

`develop` binds this checkout into the host, so an edit counts at the agent's next start. `install` builds a wheel
and lets the host's own pip install it, as a user would. Either way it is /opt/transship/bin/transship.
"""

import enum
import hashlib
import json
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import roots, shell
from lab.broker import PKI, Access
from lab.node import Node
from lab.shell import LabError

PROGRAM = "/opt/transship/bin/transship"
CONFIGURATION = "/etc/transship/agent.toml"
_DAEMON = "transship-agent"
_SOURCE, _WHEELS = "/opt/transship-src", "/opt/transship-wheels"
# The checkout is read-only in the host; without a place for byte code every start would compile everything.
_SHIM = """\
#!/opt/transship/bin/python
import sys

sys.pycache_prefix = "/var/cache/transship-pyc"
from {module} import {function}

sys.exit({function}())
"""


class Mode(enum.StrEnum):
    """How the agent gets into a host."""

    DEVELOP = "develop"
    INSTALL = "install"


@dataclass(frozen=True, slots=True)
class AgentService:
    """The agent of one host."""

    node: Node
    broker: Access
    peers: tuple[str, ...]

    def prepare(self, mode: Mode) -> None:
        """Put the agent on the disk of a host that has not started yet."""
        if mode is Mode.DEVELOP:
            self._develop()
        else:
            wheel = build_wheel()
            target = self.node.place / "upper" / _WHEELS.lstrip("/") / wheel.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, target)

    def finish(self, mode: Mode) -> None:
        """Do what needs the running host."""
        if mode is Mode.INSTALL:
            # The dependencies are in the root already, and the lab has no way to an index.
            pip = ["/opt/transship/bin/pip", "install", "--quiet", "--no-deps", "--no-index"]
            self.node.run([*pip, f"--find-links={_WHEELS}", "transship"])

    def start(
        self,
        *,
        extra_env: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        ready: Callable[[], bool] | None = None,
        timeout: float = 30,
    ) -> None:
        """Write the configuration (the lab's, over it that of `always` and `config`, table by table) and start it.

        With `ready` it returns when that says so, and raises with the agent's log if the agent ends before.
        """
        if self.running():
            raise LabError(f"the agent on {self.node.name} is already running")
        written = merge(merge(self.configuration(), self._read_always()), config or {})
        self.node.write(CONFIGURATION, to_toml(written), 0o600)
        self.node.spawn(_DAEMON, [PROGRAM, "agent", "-v"], env=extra_env)
        if ready is not None:
            self.node.wait_for_daemon(_DAEMON, ready, timeout)

    def always(self, config: Mapping[str, Any]) -> None:
        """Put this into the configuration at every start from now on."""
        self._always.write_text(json.dumps(dict(config)))

    def _read_always(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._always.read_text()) if self._always.exists() else {}
        return found

    @property
    def _always(self) -> Path:
        # outside of the host, so that it's there also for who loads the lab
        return self.node.place / "agent.json"

    def configuration(self) -> dict[str, Any]:
        """Build what every agent of the lab needs to know; the rest is at its default, certificates included."""
        return {
            "host": self.node.name,
            "broker": {
                "host": self.broker.address,
                "port": self.broker.port,
                "ca": f"{PKI}/ca.crt",
                "username": self.broker.user,
                "password": self.broker.password,
            },
            "peer": {"allow": [name for name in self.peers if name != self.node.name]},
        }

    def running(self) -> bool:
        return self.node.daemon(_DAEMON) is not None

    def wait_ended(self, timeout: float = 30) -> bool:
        """Wait for the agent's own end; False if it takes too long."""
        process = self.node.daemon(_DAEMON)
        return process is None or process.wait(timeout)

    def stop(self, grace: float = 30) -> None:
        if process := self.node.daemon(_DAEMON):
            process.end(grace)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the agent a signal; after SIGKILL wait until it is gone."""
        if process := self.node.daemon(_DAEMON):
            process.signal(number)
            if number is signal.SIGKILL:
                process.wait(10)

    def log(self) -> str:
        return self.node.log(_DAEMON)

    def _develop(self) -> None:
        site = f"/opt/transship/lib/{_python_of(self.node)}/site-packages"
        self.node.seed(f"{site}/transship.pth", f"{_SOURCE}\n")
        project = _project()
        information = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        self.node.seed(f"{site}/{project['name']}-{project['version']}.dist-info/METADATA", information)
        for name, entry in project.get("scripts", {}).items():
            module, _, function = entry.partition(":")
            self.node.seed(f"/opt/transship/bin/{name}", _SHIM.format(module=module, function=function), 0o755)


def build_wheel() -> Path:
    """Build the checkout's wheel, once per content."""
    names = ("agent", "protocol", "systemd")
    files = [path for name in names for path in sorted((roots.CHECKOUT / name).rglob("*")) if path.is_file()]
    files += [roots.CHECKOUT / "pyproject.toml", roots.CHECKOUT / "README.md"]
    digest = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(str(file.relative_to(roots.CHECKOUT)).encode() + b"\0" + file.read_bytes())
    folder = roots.cache_folder() / "wheels" / digest.hexdigest()[:12]
    if not folder.is_dir():
        with roots.build_lock() as lock:
            roots.remove_unused(_made(folder.parent), keep=set())
            work = folder.with_name(".new")
            shutil.rmtree(work, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work)]
            shell.run([*pip, str(roots.CHECKOUT)], timeout=300, pass_fds=[lock])
            if not folder.is_dir():
                work.rename(folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another, tables key by key."""
    merged = dict(ours)
    for key, value in theirs.items():
        below = merged.get(key)
        tables = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below or {}, value) if tables else value
    return merged


def to_toml(settings: Mapping[str, Any], table: str = "") -> str:
    """Write strings, numbers, truth values, lists of them and tables; JSON's notation of the former is TOML's too."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    text = f"[{table}]\n" if table else ""
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items() if value is not None)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            text += to_toml(value, f"{table}.{key}" if table else key)
    return text


def _python_of(node: Node) -> str:
    """Name the Python version in the root, by its library folder."""
    [folder] = (node.root[0] / "opt/transship/lib").glob("python3.*")
    return folder.name


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((roots.CHECKOUT / "pyproject.toml").read_text())["project"]
    return project


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
