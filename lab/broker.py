"""The lab's MQTT broker and its certificate authority.

The broker is a machine of its own on the switch (mosquitto from the same cached root), reached by the hosts at a
fixed address and by programs on the outer machine through a relay on a free loopback port.
"""

import secrets
import signal
from dataclasses import dataclass
from pathlib import Path

from agent.base import pki
from lab import relays
from lab.network import Address, Switch
from lab.node import Node

PORT = 8883
ADDRESS = Address(2)
CONTROLLER = "controller"
PKI = "/etc/transship/pki"
_DAYS = 365
CONFIGURATION = f"""\
user root
persistence true
persistence_location /var/lib/mosquitto/
autosave_interval 5
log_dest stdout
set_tcp_nodelay true
log_timestamp_format %Y-%m-%dT%H:%M:%S
allow_anonymous false
password_file /etc/mosquitto/passwords
acl_file /etc/mosquitto/acl
listener {PORT}
cafile {PKI}/ca.crt
certfile {PKI}/host.crt
keyfile {PKI}/host.key
"""
WEB_PORT = 9001
_WEB = f"""\
listener {WEB_PORT}
protocol websockets
"""
"""For browsers on this machine, which know nothing of the lab's authority. On a real network: with TLS, as above."""
ACL = Path(__file__).parents[1] / "systemd" / "mosquitto.acl"
"""The one that is shipped for real brokers."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a client needs to connect to the broker."""

    address: str
    port: int
    user: str
    password: str
    ca_file: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """The lab's throw-away certificate authority, kept in its state folder."""

    folder: Path

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        certificate, key = pki.make_ca("transship lab", _DAYS)
        self.ca_file.write_bytes(certificate)
        _write_private(self.folder / "ca.key", key)

    def issue(self, name: str, *addresses: str) -> tuple[str, str]:
        """Make a certificate and its key for a machine of the lab, good on loopback addresses too, as the relay's."""
        names, ips = [name, "localhost"], [*addresses, "127.0.0.1", "::1"]
        ca_key = (self.folder / "ca.key").read_bytes()
        certificate, key = pki.issue(self.ca_file.read_bytes(), ca_key, name, names, ips, _DAYS)
        return certificate.decode(), key.decode()

    def equip(self, node: Node) -> None:
        """Put the authority's and the machine's own certificate into a machine that has not started yet."""
        certificate, key = self.issue(node.name, node.address.v4, node.address.v6)
        node.seed(f"{PKI}/ca.crt", self.ca_file.read_text())
        node.seed(f"{PKI}/host.crt", certificate)
        node.seed(f"{PKI}/host.key", key, 0o600)


@dataclass(frozen=True, slots=True)
class Broker:
    """Mosquitto on its machine, and the relay to it."""

    node: Node
    authority: Authority
    passwords: dict[str, str]
    switch: Switch

    @staticmethod
    def make_passwords(users: list[str]) -> dict[str, str]:
        return {user: secrets.token_urlsafe(16) for user in users}

    def create(self) -> None:
        self.authority.equip(self.node)
        self.node.seed("/etc/mosquitto/lab.conf", CONFIGURATION + _WEB)
        self.node.seed("/etc/mosquitto/acl", ACL.read_text(), 0o600)
        lines = [f"{user}:{password}\n" for user, password in self.passwords.items()]
        self.node.seed("/etc/mosquitto/passwords", "".join(lines), 0o600)

    def start_machine(self) -> None:
        self.node.start()
        # mosquitto wants them hashed; the second time it finds nothing to do.
        self.node.run(["mosquitto_passwd", "-U", "/etc/mosquitto/passwords"])
        self.start()
        relays.start(self.switch, self.node, "relay", PORT)
        relays.start(self.switch, self.node, "web", WEB_PORT)

    def start(self) -> None:
        """Start mosquitto and wait until it listens."""
        self.node.spawn("mosquitto", ["mosquitto", "-c", "/etc/mosquitto/lab.conf"])
        self.node.wait_for_daemon("mosquitto", self._listens, timeout=20)

    def stop(self) -> None:
        if process := self.node.daemon("mosquitto"):
            process.end()

    def kill(self) -> None:
        """End it without a chance to save."""
        if process := self.node.daemon("mosquitto"):
            process.signal(signal.SIGKILL)
            process.wait(10)

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self, acl: str | None = None) -> None:
        """Make mosquitto read its passwords and its ACL again, the latter replaced if given."""
        if acl is not None:
            self.node.write("/etc/mosquitto/acl", acl, 0o600)
        if process := self.node.daemon("mosquitto"):
            process.signal(signal.SIGHUP)

    def log(self) -> str:
        return self.node.log("mosquitto")

    def access(self, user: str = CONTROLLER) -> Access:
        """Tell how to connect from within the lab's network."""
        return Access(self.node.address.v4, PORT, user, self.passwords[user], self.authority.ca_file)

    def local_access(self, user: str = CONTROLLER) -> Access:
        """Tell how to connect from the outer machine, without any namespace."""
        host, port = self.local_address
        return Access(host, port, user, self.passwords[user], self.authority.ca_file)

    @property
    def local_address(self) -> tuple[str, int]:
        return "127.0.0.1", relays.port_of(self.node, "relay")

    @property
    def web_url(self) -> str:
        """Where a browser on the outer machine reaches the broker."""
        return f"ws://127.0.0.1:{relays.port_of(self.node, 'web')}"

    def _listens(self) -> bool:
        listening = self.node.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"]).stdout
        return f":{PORT} " in listening


def _write_private(file: Path, content: bytes) -> None:
    file.touch(mode=0o600)
    file.write_bytes(content)
