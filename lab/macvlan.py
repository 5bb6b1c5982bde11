"""A macvlan network of the same name on every host: addresses that move along with their container."""

from dataclasses import dataclass

from lab.host import Host
from lab.network import SUBNET_V4, SUBNET_V6, SWITCH, Address

NETWORK = "outside"
OPTIONS_V4 = ["--driver", "macvlan", "--opt", "parent=eth0", "--subnet", SUBNET_V4, "--gateway", SWITCH.v4]
OPTIONS_V6 = ["--ipv6", "--subnet", SUBNET_V6, "--gateway", SWITCH.v6]


@dataclass(frozen=True, slots=True)
class Place(Address):
    """Where a container is found."""

    @property
    def mac(self) -> str:
        return f"02:42:0a:4d:00:{self.last:02x}"

    @property
    def options(self) -> list[str]:
        """For `docker run`."""
        return ["--network", NETWORK, "--ip", self.v4, "--ip6", self.v6, "--mac-address", self.mac]


def ensure_network(host: Host) -> None:
    if host.run(["docker", "network", "inspect", NETWORK], check=False).returncode:
        host.docker("network", "create", *OPTIONS_V4, *OPTIONS_V6, NETWORK)
