"""Machines of the VM lab as a user's hosts are: Docker from its units, the agent installed from a wheel, as a unit.

For what only a whole system shows: its shutdown, its boot, units and their order. Everything lies on the machine's
own disk, so all of it is there again after `reboot`, `poweroff` and `start`, or `kill` and `start`. In the namespace
lab, and in `checkout`, a host's daemons are started by the lab instead.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lab import images as workloads
from lab import service
from lab.broker import ACL, CONFIGURATION, CONTROLLER, PKI, PORT, Authority, Broker
from lab.cluster import deadlines
from lab.naming import state_folder
from lab.service import CONFIGURATION as AGENT_TOML
from lab.service import PROGRAM, merge, to_toml
from lab.shell import Completed, LabError
from lab.vm.checkout import SLOWER
from lab.vm.image import cached_image
from lab.vm.machine import BOOT_SECONDS, DISK_OF_FILES, Machine, Spec, running, running_pair

UNIT = "transship-agent.service"
_ENGINE = ("docker.socket", "docker.service", "containerd.service")
_WHEELS = "/opt/transship-wheels"
_NEWER, _IMAGES = f"{_WHEELS}/newer", f"{_WHEELS}/images"
NEWER = "99.0.0"
"""The version of the wheel that `upgrade` installs: this checkout all the same."""
_MEMORY_MIB = 2048
_DAEMON_JSON = json.dumps({"experimental": True, "storage-driver": "overlay2"})


@dataclass(frozen=True, slots=True)
class Installed:
    """One host. Its `machine` can be used, restarted, switched off and on; call `wait_until_up` after the latter."""

    machine: Machine
    address: str
    broker: str
    password: str

    @property
    def name(self) -> str:
        return self.machine.spec.name

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run a command in it; takes what `Machine.run` takes."""
        return self.machine.run(argv, **options)

    def docker(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Run `docker WORDS` and return what it printed, without the last newline."""
        return self.run(["docker", *words], check=check, timeout=timeout).stdout.rstrip("\n")

    def ensure_image(self, name: str) -> None:
        """Have one of the lab's images in its Docker: `busybox`, `py`, `layers`, or one that was given to `hosts`."""
        if self.run(["docker", "image", "inspect", name], check=False).returncode:
            given = f"{_IMAGES}/{name}.tar"
            there = self.run(["test", "-e", given], check=False).returncode == 0
            self.docker("load", "--quiet", "--input", given if there else cached_image(name), timeout=300)

    def upgrade(self) -> None:
        """Do what the installation guide says for a newer version, but for the restart of the agent."""
        self.run([*_pip(_NEWER), "--upgrade", "transship"], timeout=180)
        self.run([PROGRAM, "setup"], timeout=120)

    def transship(self, *words: str, check: bool = True, timeout: float = 300) -> Completed:
        """Run the command line in it, as a controller."""
        env = {
            "TRANSSHIP_BROKER__HOST": self.broker,
            "TRANSSHIP_BROKER__PORT": str(PORT),
            "TRANSSHIP_BROKER__USERNAME": CONTROLLER,
            "TRANSSHIP_BROKER__PASSWORD": self.password,
        }
        return self.run([PROGRAM, *words], check=check, timeout=timeout, env=env)

    def journal(self, unit: str = UNIT) -> str:
        """Return what a unit has said, all boots of the machine together."""
        return self.run(["journalctl", "--no-pager", "--output=cat", f"--unit={unit}"]).stdout

    def wait_until_up(self) -> None:
        """Wait until the boot is over, with all that the agent's unit is ordered after."""
        self.run(["systemctl", "is-system-running", "--wait"], check=False, timeout=BOOT_SECONDS)
        states = [self.run(["systemctl", "is-active", unit], check=False).stdout.strip() for unit in (*_ENGINE, UNIT)]
        if states != ["active"] * len(states):
            raise LabError(f"{self.name}: {states}\n{self.journal()[-3000:]}")


@contextmanager
def hosts(
    *names: str, agent: Mapping[str, Any] | None = None, memory_mib: int = _MEMORY_MIB, images: Sequence[str] = ()
) -> Iterator[list[Installed]]:
    """One host, or two on one network, with agents that are ready; `agent` is laid over each one's configuration.

    Of `images` that are not on each machine's disk anyway they have the archives.

    The broker is a unit on the last of them: the first can be switched off without it.
    """
    if len(names) not in (1, 2):
        raise LabError("one machine or two")
    files = state_folder() / f"vm-{'-'.join(names)}.tar"
    files.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(files.unlink, missing_ok=True)
        with tarfile.open(files, "w") as tar:
            wheel = service.build_wheel()
            tar.add(wheel, wheel.name)
            _add_newer(tar, wheel)
            for name in images:
                tar.add(workloads.ensure(name), f"images/{name}.tar")
        specs = [Spec(name, memory_mib, files=files) for name in names]
        machines = (
            list(stack.enter_context(running_pair(specs[0], specs[1])))
            if len(specs) == 2
            else [stack.enter_context(running(specs[0]))]
        )
        with TemporaryDirectory() as folder:
            made = _installed(machines, dict(agent or {}), Authority(Path(folder)))
        yield made


def _installed(machines: list[Machine], agent: dict[str, Any], authority: Authority) -> list[Installed]:
    passwords = Broker.make_passwords([*(machine.spec.name for machine in machines), CONTROLLER])
    authority.make()
    addresses = [machine.spec.wire.address if machine.spec.wire else "127.0.0.1" for machine in machines]
    broker = addresses[-1]
    made = [Installed(*pair, broker, passwords[CONTROLLER]) for pair in zip(machines, addresses, strict=True)]
    for host in made:
        certificate, key = authority.issue(host.name, host.address)
        _write(host, f"{PKI}/ca.crt", authority.ca_file.read_text())
        _write(host, f"{PKI}/host.crt", certificate)
        _write(host, f"{PKI}/host.key", key)
    _start_broker(made[-1], passwords)

    def start(host: Installed) -> None:
        peers = [other.name for other in made if other is not host]
        _start_host(host, merge(_configuration(host, peers, passwords[host.name]), agent))

    with ThreadPoolExecutor() as both:
        list(both.map(start, made))
    return made


def _configuration(host: Installed, peers: list[str], password: str) -> dict[str, Any]:
    broker = {"host": host.broker, "port": PORT, "ca": f"{PKI}/ca.crt", "username": host.name, "password": password}
    peer = {"allow": peers, "address": host.address}
    return {"host": host.name, "broker": broker, "peer": peer, **deadlines(SLOWER)}


def _start_broker(host: Installed, passwords: dict[str, str]) -> None:
    _write(host, "/etc/mosquitto/mosquitto.conf", CONFIGURATION)
    _write(host, "/etc/mosquitto/acl", ACL.read_text())
    _write(host, "/etc/mosquitto/passwords", "".join(f"{user}:{word}\n" for user, word in passwords.items()))
    host.run(["mosquitto_passwd", "-U", "/etc/mosquitto/passwords"])
    _enable(host, "mosquitto.service")


def _start_host(host: Installed, configuration: dict[str, Any]) -> None:
    _write(host, "/etc/docker/daemon.json", _DAEMON_JSON)
    _enable(host, *_ENGINE)
    host.run(["mkdir", "-p", _WHEELS])
    host.run(["tar", "--extract", f"--directory={_WHEELS}", f"--file={DISK_OF_FILES}"])
    host.run([*_pip(_WHEELS), "transship"], timeout=180)
    host.run([PROGRAM, "setup"], timeout=120)
    _write(host, AGENT_TOML, to_toml(configuration))
    _enable(host, UNIT)
    host.wait_until_up()


def _pip(folder: str) -> list[str]:
    return ["/opt/transship/bin/pip", "install", "--quiet", "--no-deps", "--no-index", f"--find-links={folder}"]


def _add_newer(tar: tarfile.TarFile, wheel: Path) -> None:
    """The same wheel with another version, wherever that is said in it."""
    content, old = io.BytesIO(), wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as newer:
        for name in ours.namelist():
            data = ours.read(name)
            if name == "agent/__init__.py" or name.endswith((".dist-info/METADATA", ".dist-info/RECORD")):
                data = data.replace(old.encode(), NEWER.encode())
            newer.writestr(name.replace(f"-{old}.dist-info", f"-{NEWER}.dist-info"), data)
    entry = tarfile.TarInfo(f"newer/{wheel.name.replace(old, NEWER)}")
    entry.size = len(content.getvalue())
    content.seek(0)
    tar.addfile(entry, content)


def _enable(host: Installed, *units: str) -> None:
    """Start units now and at every boot; the machine's image has some of them masked."""
    host.run(["systemctl", "unmask", *units])
    host.run(["systemctl", "enable", "--now", *units], timeout=BOOT_SECONDS)


def _write(host: Installed, file: str, content: str) -> None:
    script = 'umask 077; mkdir -p "${1%/*}"; cat >"$1"'
    host.run(["sh", "-c", script, "write", file], input=content)
