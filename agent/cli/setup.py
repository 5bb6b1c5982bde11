"""`transship setup`: what a host needs before its agent can run, and the way back. Safe to repeat; restarts nothing."""

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import agent
from agent.base import config
from agent.base.errors import DockerFailed, Refused
from agent.base.shell import Shell
from agent.cli import registration
from agent.cli.output import OK, Out
from agent.cli.registration import DaemonJson, DockerApi
from agent.doors import tmpfs
from protocol.errors import ErrorCode

RUNTIME = "transship"
UNIT = "transship-agent.service"
LOGIND = "transship-logind.conf"
TMPFILES = "transship-tmpfiles.conf"
EXAMPLE = "agent.toml.example"
DEFAULT_DOCKER = "unix:///run/docker.sock"
SYSTEMD_PROGRAMS = ("lib/systemd/systemd", "usr/lib/systemd/systemd")


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything lies; all below `root`, so that a test can have a host of its own."""

    root: Path = Path("/")
    settings: Path = config.DEFAULT_FILE
    daemon_json: Path = Path(registration.DEFAULT_FILE)
    docker: str = DEFAULT_DOCKER

    @classmethod
    def of(cls, settings: Path, daemon_json: Path | None) -> "Places":
        """As the agent's settings have it, where they can be read."""
        docker = DEFAULT_DOCKER
        with contextlib.suppress(ValueError):  # `--check` says what is wrong with them; here the default will do
            docker = config.load(settings).docker
        return cls(settings=settings, daemon_json=daemon_json or Path(registration.DEFAULT_FILE), docker=docker)

    @property
    def launcher(self) -> Path:
        return self.root / "usr/local/bin/transship-runtime"

    @property
    def folders(self) -> dict[Path, int]:
        etc = self.root / "etc/transship"
        return {etc: 0o755, etc / "pki": 0o700, self.root / "var/lib/transship": 0o700}

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system" / UNIT

    @property
    def beside_unit(self) -> dict[str, Path]:
        """By its name in systemd/, what else systemd reads."""
        return {
            LOGIND: self.root / "etc/systemd/logind.conf.d/60-transship.conf",
            TMPFILES: self.root / "etc/tmpfiles.d/transship.conf",
        }

    @property
    def units_are_ours(self) -> bool:
        """Whether they are written here: not where a Debian package has brought them, unless older ones hide those."""
        return self.has_systemd and (self.unit.exists() or not (self.root / "usr/lib/systemd/system" / UNIT).exists())

    @property
    def has_systemd(self) -> bool:
        return any((self.root / program).exists() for program in SYSTEMD_PROGRAMS)

    @property
    def systemd_runs(self) -> bool:
        try:
            return (self.root / "proc/1/comm").read_text().strip() == "systemd"
        except OSError:
            return False


@dataclass(slots=True)
class Log:
    """What was done, as it is done."""

    out: Out
    changed: list[str] = field(default_factory=list)

    def did(self, what: str) -> None:
        self.changed.append(what)
        self.out.say(f"✔ {what}", "green")

    def was(self, what: str) -> None:
        self.out.say(f"· {what}", "dim")

    def end(self, **more: Any) -> int:
        if self.out.as_json:
            self.out.item({"ok": True, "changed": self.changed, **more})
        return OK


def install(out: Out, places: Places) -> int:
    _need_root(places)
    before = DaemonJson.read(places.daemon_json)
    dockerd = registration.find_dockerd(places.root)
    if dockerd is not None:
        registration.check_flags(dockerd, places.daemon_json, RUNTIME, places.launcher)
    log = Log(out)
    for folder, mode in places.folders.items():
        _make_folder(log, folder, mode)
    _put(log, places.launcher, launcher(), 0o755)
    _register(log, places, before, dockerd)
    if not places.settings.exists():
        _put(log, places.settings, shipped(EXAMPLE), 0o600)
    if places.units_are_ours:
        if _put(log, places.unit, unit(), 0o644):
            _daemon_reload(log, places)
        written = [name for name, file in places.beside_unit.items() if _put(log, file, shipped(name), 0o644)]
        if LOGIND in written:
            _reload_logind(log, places)
    following = _next_steps(places)
    for step in following:
        out.say(f"→ {step}", "cyan")
    return log.end(next=following)


def remove(out: Out, places: Places, *, purge: bool) -> int:
    _need_root(places)
    before = DaemonJson.read(places.daemon_json)
    if before.content.get("default-runtime") == RUNTIME:
        raise Refused(ErrorCode.BAD_COMMAND, f"{RUNTIME} is the default runtime in {places.daemon_json}")
    dockerd = registration.find_dockerd(places.root)
    if dockerd is not None and (users := DockerApi(places.docker).users_of_runtime(RUNTIME)):
        raise Refused(
            ErrorCode.BUSY,
            f"without the runtime these containers could not be started again: {', '.join(users)}",
            hint="move them away, or remove them, first",
        )
    log = Log(out)
    if places.unit.exists():
        if places.systemd_runs:
            _systemctl("disable", "--now", UNIT)
        _delete(log, places.unit)
        _daemon_reload(log, places)
    _remove_beside_unit(log, places)
    _unregister(log, places, before, dockerd)
    _delete(log, places.launcher)
    if places.settings.exists() and (purge or places.settings.read_text() == shipped(EXAMPLE)):
        _delete(log, places.settings)
    for folder in reversed(places.folders):
        if folder.exists() and (purge or not any(folder.iterdir())):
            shutil.rmtree(folder)
            log.did(f"{folder} removed")
        elif folder.exists():
            log.was(f"{folder} kept; --purge removes it")
    _remove_empty(log, places.root / "run/transship")
    return log.end()


# --- the parts


def shipped(name: str) -> str:
    """A file of the folder systemd/, out of the installed package or out of the checkout."""
    installed = resources.files(agent) / "data" / "systemd" / name
    if installed.is_file():
        return installed.read_text()
    return (Path(agent.__file__).parents[1] / "systemd" / name).read_text()


def launcher() -> str:
    """The runtime's launcher, which calls this very interpreter and package."""
    folder = Path(agent.__file__).resolve().parent / "runtime"
    text = (folder / "launcher.sh").read_text()
    return text.replace("@PYTHON@", shlex.quote(sys.executable)).replace("@RUNTIME@", shlex.quote(str(folder)))


def unit() -> str:
    program = Path(sys.executable).with_name("transship")
    command = str(program) if program.exists() else f"{sys.executable} -P -m agent"
    return shipped(UNIT).replace("@TRANSSHIP@", command)


def _need_root(places: Places) -> None:
    if os.geteuid() != 0 and places.root == Path("/"):
        raise Refused(ErrorCode.BAD_COMMAND, "setup changes the host, so it needs root", hint="sudo transship setup")


def _make_folder(log: Log, folder: Path, mode: int) -> None:
    if folder.is_dir():
        if folder.stat().st_mode & 0o777 & ~mode:
            folder.chmod(mode)
            log.did(f"{folder} closed to others")
        return
    folder.mkdir(parents=True)
    folder.chmod(mode)
    log.did(f"{folder} made")


def _put(log: Log, file: Path, text: str, mode: int) -> bool:
    """Write a file unless it is so already; tells whether it was written."""
    if file.exists() and file.read_text() == text and file.stat().st_mode & 0o777 == mode:
        log.was(f"{file} is up to date")
        return False
    registration.write_atomically(file, text, mode)
    file.chmod(mode)
    log.did(f"{file} written")
    return True


def _delete(log: Log, file: Path) -> None:
    if file.exists() or file.is_symlink():
        file.unlink()
        log.did(f"{file} removed")


def _remove_empty(log: Log, folder: Path) -> None:
    """What containers still run from (agent/prework/init.py) stays until the next boot."""
    there = folder.exists()
    for inner, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(inner).rmdir()
    if folder.is_mount() and not any(folder.iterdir()):
        asyncio.run(tmpfs.unmount(Shell(), folder))
        folder.rmdir()
    if there and not folder.exists():
        log.did(f"{folder} removed")


def _register(log: Log, places: Places, before: DaemonJson, dockerd: registration.Dockerd | None) -> None:
    api = DockerApi(places.docker)

    def known() -> bool:
        return bool(api.runtimes().get(RUNTIME, {}).get("path") == str(places.launcher))

    content = before.with_runtime(RUNTIME, places.launcher)
    if content == before.content and (dockerd is None or registration.wait_until(known, 0)):
        log.was(f"the runtime is registered in {places.daemon_json}")
        return
    fresh = RUNTIME not in before.content.get("runtimes", {}) and before.text is not None
    if fresh:
        shutil.copy2(places.daemon_json, before.backup)
    try:
        registration.apply(before, content, dockerd, known, what=f"listed the runtime {RUNTIME}")
    except DockerFailed:
        if fresh:
            before.backup.unlink(missing_ok=True)
        raise
    log.did(f"runtime {RUNTIME} registered in {places.daemon_json}" + (", and dockerd lists it" if dockerd else ""))
    if dockerd is None:
        log.out.warn("dockerd does not run here now; it will know the runtime when it starts")


def _unregister(log: Log, places: Places, before: DaemonJson, dockerd: registration.Dockerd | None) -> None:
    if RUNTIME not in before.content.get("runtimes", {}):
        return
    content = before.without_runtime(RUNTIME)
    api = DockerApi(places.docker)

    def forgotten() -> bool:
        return RUNTIME not in api.runtimes()

    # A key that is gone from the file keeps its old value in dockerd; an empty one replaces it.
    registration.apply(before, {"runtimes": {}, **content}, dockerd, forgotten, what=f"forgotten {RUNTIME}")
    original = DaemonJson.read(before.backup)
    if original.text is not None and original.content == content:
        registration.write_atomically(places.daemon_json, original.text)
    elif content or original.text is not None:
        registration.write_atomically(places.daemon_json, before.written(content))
    else:
        places.daemon_json.unlink()
    before.backup.unlink(missing_ok=True)
    log.did(f"runtime {RUNTIME} taken out of {places.daemon_json}" + (", and dockerd forgot it" if dockerd else ""))


def _daemon_reload(log: Log, places: Places) -> None:
    if places.systemd_runs:
        _systemctl("daemon-reload")
        log.did("systemd has read its units anew")


def _remove_beside_unit(log: Log, places: Places) -> None:
    for name, file in places.beside_unit.items():
        there = file.exists()
        _delete(log, file)
        if there and name == LOGIND:
            with contextlib.suppress(OSError):  # others have theirs there
                file.parent.rmdir()
            _reload_logind(log, places)


def _reload_logind(log: Log, places: Places) -> None:
    """It reads its settings anew without a restart, which would end sessions."""
    if places.systemd_runs:
        asyncio.run(Shell().run("systemctl", "kill", "--signal=HUP", "systemd-logind.service", check=False))
        log.did("logind has read its settings anew")


def _systemctl(*words: str) -> None:
    asyncio.run(Shell().run("systemctl", *words, timeout=120))


def _next_steps(places: Places) -> list[str]:
    steps = []
    pki = places.root / "etc/transship/pki"
    if not (pki / "host.crt").exists():
        steps.append(f"put ca.crt, host.crt and host.key into {pki} (`transship pki host NAME` makes them)")
    if places.settings.exists() and places.settings.read_text() == shipped(EXAMPLE):
        steps.append(f"say in {places.settings} where the broker is, and which peers are allowed")
    steps.append("`transship setup --check` tells what is still missing")
    if places.systemd_runs:
        steps.append(f"systemctl enable --now {UNIT}")
    return steps
