"""The whole lab: hosts, broker, client and switch, made together and removed together.

Everything it makes lies in one state folder, is recorded there before it is made, and can be removed by any later
process: a lab whose owner was killed is cleaned up by its next `up`.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from lab import roots, shell
from lab.broker import ADDRESS as BROKER_ADDRESS
from lab.broker import CONTROLLER, Authority, Broker
from lab.host import Engine, Host, HostSpec
from lab.naming import state_folder
from lab.network import SWITCH, Address, Namespace, Switch
from lab.node import Node
from lab.service import AgentService, Mode
from lab.shell import Completed, LabError, Process

LOCK_SECONDS = 10.0

CLIENT, BROKER = "client", "broker"
CLIENT_ADDRESS = Address(50)
_FIRST_HOST = 11
_LAB_NAME, _HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,9}"), re.compile(r"[a-z][a-z0-9-]{0,11}")
# Machine-wide. Lazy pages splice whole page pipes, which needs CAP_SYS_RESOURCE or these limits lifted;
# two dockerds and their containers hold more inotify handles than one.
_SYSCTLS = {
    "fs/pipe-max-size": 16777216,
    "fs/pipe-user-pages-soft": 0,
    "fs/pipe-user-pages-hard": 0,
    "fs/inotify/max_user_instances": 1024,
}
DEFAULT_HOSTS = (HostSpec("host-a", Engine.DOCKER26), HostSpec("host-b", Engine.DOCKER28))


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab. `Lab.up()` makes it; `Lab.load()` finds one that another process made."""

    name: str
    hosts: dict[str, Host]
    broker: Broker
    switch: Switch
    mode: Mode

    # Making and finding

    @classmethod
    def up(cls, name: str, hosts: Sequence[HostSpec] = DEFAULT_HOSTS, *, mode: Mode = Mode.DEVELOP) -> Self:
        """Remove what is left of a lab of this name, then make it; on return Docker answers on every host."""
        _check_names(name, hosts)
        layers = roots.ensure(with_docker28=any(spec.engine is Engine.DOCKER28 for spec in hosts))
        _lift_limits()
        with _locked(name):
            _remove(name)
            place = state_folder() / name
            place.mkdir(parents=True)
            record = {
                "hosts": [asdict(spec) for spec in hosts],
                "mode": mode,
                "passwords": Broker.make_passwords([*(spec.name for spec in hosts), CONTROLLER]),
                "roots": {engine: [str(layer) for layer in folders] for engine, folders in layers.items()},
            }
            _write_record(place / "lab.json", record)
            lab = cls._from_record(name, record)
            try:
                lab._start()
            except BaseException:
                _remove(name)
                raise
        return lab

    @classmethod
    def load(cls, name: str) -> Self:
        file = state_folder() / name / "lab.json"
        if not file.exists():
            raise LabError(f"there is no lab {name}")
        return cls._from_record(name, json.loads(file.read_text()))

    @classmethod
    def _from_record(cls, name: str, record: dict[str, Any]) -> Self:
        place, switch, mode = state_folder() / name, Switch(name), Mode(record["mode"])
        layers = {engine: tuple(map(Path, folders)) for engine, folders in record["roots"].items()}

        source = roots.CHECKOUT if mode is Mode.DEVELOP else None
        broker_node = Node(name, BROKER, place / BROKER, layers[Engine.DOCKER26], switch, BROKER_ADDRESS)
        broker = Broker(broker_node, Authority(place / "pki"), record["passwords"], switch)
        hosts: dict[str, Host] = {}
        names = tuple(entry["name"] for entry in record["hosts"])
        for number, entry in enumerate(record["hosts"]):
            spec = HostSpec(**entry | {"engine": Engine(entry["engine"])})
            root, address = layers[spec.engine], Address(_FIRST_HOST + number)
            machine = Node(name, spec.name, place / spec.name, root, switch, address, source, spec.cgroup2)
            hosts[spec.name] = Host(spec, machine, AgentService(machine, broker.access(spec.name), names))
        return cls(name, hosts, broker, switch, mode)

    def _start(self) -> None:
        self.broker.authority.make()
        self.broker.create()
        for host in self.hosts.values():
            self.broker.authority.equip(host.node)
            host.create()
            host.agent.prepare(self.mode)
        names = self._names()
        for machine in (self.broker.node, *(host.node for host in self.hosts.values())):
            machine.seed("/etc/hosts", names)
            machine.seed("/etc/hostname", f"{machine.name}\n")
            machine.seed("/etc/resolv.conf", "# no name server in the lab\n")
        self.switch.make()
        self.client.make()
        self.switch.plug(CLIENT, self.client, CLIENT_ADDRESS)
        # The engines need most of the time: start them all, then wait for all.
        for host in self.hosts.values():
            host.node.start()
            host.start_engine()
        self.broker.start_machine()
        for host in self.hosts.values():
            host.agent.finish(self.mode)
            host.wait_for_docker()

    def down(self) -> None:
        """Remove the lab and everything in it."""
        remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def __getitem__(self, host: str) -> Host:
        try:
            return self.hosts[host]
        except KeyError:
            raise LabError(f"no host {host} in lab {self.name}: it has {', '.join(self.hosts)}") from None

    # The network

    @property
    def links(self) -> list[str]:
        return [*self.hosts, BROKER, CLIENT]

    def cut(self, link: str) -> None:
        """Pull a machine's cable."""
        self.switch.cut(self._link(link))

    def heal(self, link: str) -> None:
        """Plug a machine's cable in again, and let it be as fast as it can."""
        self.switch.heal(self._link(link))

    def slow(self, link: str, rate: str) -> None:
        """Limit a machine's cable to a rate such as 100mbit."""
        self.switch.slow(self._link(link), rate)

    @property
    def client(self) -> Namespace:
        return Namespace.of(self.name, CLIENT)

    def client_run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run one of this machine's commands at the client's place in the network; options as `shell.run`."""
        return shell.run(self.client.enter(*argv), **options)

    def client_popen(self, argv: Sequence[str], **options: Any) -> Process:
        return shell.popen(self.client.enter(*argv), **options)

    def in_switch(self, argv: Sequence[str]) -> list[str]:
        """Build the command line that runs one of this machine's commands on the switch."""
        return self.switch.namespace.enter(*argv)

    def controller_run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run one of this machine's commands on the switch, where a controller would be."""
        return shell.run(self.in_switch(argv), **options)

    def status(self) -> dict[str, str]:
        """Say in a word how each machine is."""
        return {BROKER: _state(self.broker.node, "mosquitto")} | {
            name: _state(host.node, "dockerd", "containerd") + (", agent" if host.agent.running() else "")
            for name, host in self.hosts.items()
        }

    def _link(self, link: str) -> str:
        if link not in self.links:
            raise LabError(f"no link {link} in lab {self.name}: it has {', '.join(self.links)}")
        return link

    def _names(self) -> str:
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        machines = [(host.name, host.node.address) for host in self.hosts.values()]
        for name, address in [*machines, (BROKER, self.broker.node.address), ("switch", SWITCH)]:
            lines += [f"{address.v4} {name}", f"{address.v6} {name}"]
        return "\n".join(lines) + "\n"


def remove(name: str) -> None:
    """Remove a lab, whatever state it is in."""
    with _locked(name):
        _remove(name)


def _remove(name: str) -> None:
    # By what lies there, not by lab.json: another version of this file may have written that, or half of it.
    place = state_folder() / name
    for folder in place.glob("*/upper"):
        machine = folder.parent
        Node(name, machine.name, machine, (), Switch(name), Address(0)).remove()
    for namespace in Namespace.all_of(name):
        namespace.remove()
    shutil.rmtree(place, ignore_errors=True)


def _state(node: Node, *daemons: str) -> str:
    if not node.running():
        return "off"
    ended = [daemon for daemon in daemons if node.daemon(daemon) is None]
    return f"on, {', '.join(ended)} ended" if ended else "up"


def _flocked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(name: str) -> Iterator[None]:
    state_folder().mkdir(parents=True, exist_ok=True)
    with (state_folder() / f"{name}.lock").open("w") as file:
        # Who was killed has it for a moment more: a child of theirs that was just being started.
        until = time.monotonic() + LOCK_SECONDS
        while not _flocked(file):
            if time.monotonic() > until:
                raise LabError(f"lab {name} is being made or removed by another process")
            time.sleep(0.05)
        if not Path(file.name).exists() or not os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat()):
            raise LabError(f"lab {name} was removed by another process just now")
        try:
            yield
        finally:
            # Left behind, it would be all that is left of a lab.
            if not (state_folder() / name).exists():
                Path(file.name).unlink(missing_ok=True)


def _check_names(name: str, hosts: Sequence[HostSpec]) -> None:
    if not _LAB_NAME.fullmatch(name):
        raise LabError(f"a lab's name is a letter and up to 9 letters or digits, not {name}")
    names = [spec.name for spec in hosts]
    for host in names:
        # A network device's name has at most 15 characters, ours a prefix of two.
        if not _HOST_NAME.fullmatch(host) or host in (BROKER, CLIENT, CONTROLLER, "switch"):
            raise LabError(f"a host's name is a letter and up to 11 letters, digits or dashes, not {host}")
    if len(set(names)) != len(names):
        raise LabError("two hosts of the same name")


def _lift_limits() -> None:
    for name, value in _SYSCTLS.items():
        file = Path("/proc/sys") / name
        if file.read_text().strip() != str(value):
            file.write_text(f"{value}\n")


def _write_record(file: Path, record: dict[str, Any]) -> None:
    file.touch(mode=0o600)
    file.write_text(json.dumps(record, indent=2) + "\n")
