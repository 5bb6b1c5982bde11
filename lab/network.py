"""The lab's network: one switch per lab in a namespace of its own, and a cable to each machine.

Nothing of it is in the machine's main network namespace, so several labs use the same addresses side by side.
A cable is named after the machine at its end. Cutting it takes the carrier away, as pulling a plug does.
"""

from dataclasses import dataclass
from pathlib import Path

from lab import shell
from lab.naming import PREFIX

NETNS_FOLDER = Path("/run/netns")
SUBNET_V4, SUBNET_V6 = "10.77.0.0/24", "fd77::/64"
# A bucket that a fast rate can still fill between two timer ticks.
_BURST, _QUEUE = "256kb", "50ms"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a machine is found: the same last part in both families."""

    last: int

    @property
    def v4(self) -> str:
        return f"10.77.0.{self.last}"

    @property
    def v6(self) -> str:
        return f"fd77::{self.last:x}"

    @property
    def mac(self) -> str:
        """Of the machine's own card; its containers on macvlan have others."""
        return f"02:4c:0a:4d:00:{self.last:02x}"


SWITCH = Address(1)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One named network namespace."""

    name: str

    @classmethod
    def of(cls, lab: str, machine: str) -> "Namespace":
        return cls(f"{PREFIX}-{lab}-{machine}")

    @classmethod
    def all_of(cls, lab: str) -> list["Namespace"]:
        """Find what exists of a lab, whatever its records say."""
        # A lab may be called like the beginning of another one: machine names hold no dot, lab names no dash.
        return [cls(path.name) for path in sorted(NETNS_FOLDER.glob(f"{PREFIX}-{lab}-*"))]

    @property
    def path(self) -> Path:
        return NETNS_FOLDER / self.name

    def make(self) -> None:
        shell.run(["ip", "netns", "add", self.name])
        self.ip("link set lo up")

    def remove(self) -> None:
        """End what still runs in it, then remove it; nothing happens if it does not exist."""
        if not self.path.exists():
            return
        for pid in shell.run(["ip", "netns", "pids", self.name]).stdout.split():
            if process := shell.Proc.of(int(pid)):
                process.end(grace=0)
        shell.run(["ip", "netns", "delete", self.name])

    def ip(self, *lines: str) -> None:
        """Run several ip commands in one process; the first that fails ends it."""
        shell.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines) + "\n")

    def enter(self, *argv: str) -> list[str]:
        """Build the command line that runs a command with this network and the machine's own files."""
        # Not `ip netns exec`: that mounts another /sys, which hides the cgroups.
        return ["nsenter", f"--net={self.path}", "--", *argv]


@dataclass(frozen=True, slots=True)
class Switch:
    """The bridge that all machines of a lab are plugged into."""

    lab: str

    @property
    def namespace(self) -> Namespace:
        return Namespace.of(self.lab, "switch")

    def make(self) -> None:
        self.namespace.make()
        self.namespace.ip(
            # with a MAC of its own: else it has the lowest of its cables', another one whenever a machine boots
            f"link add br0 address {SWITCH.mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"address add {SWITCH.v4}/24 dev br0",
            f"address add {SWITCH.v6}/64 dev br0 nodad",
            "link set br0 up",
        )

    def plug(self, cable: str, machine: Namespace, address: Address) -> None:
        """Connect a machine; it sees the cable as eth0, by the same MAC after each boot, as a card has it."""
        self.namespace.ip(
            f"link add {_port(cable)} type veth peer name eth0 address {address.mac} netns {machine.name}",
            f"link set {_port(cable)} master br0 up",
        )
        machine.ip(
            f"address add {address.v4}/24 dev eth0",
            f"address add {address.v6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {SWITCH.v4}",
            f"route add default via {SWITCH.v6}",
        )

    def unplug(self, cable: str) -> None:
        """Remove a cable: it would go with the machine's namespace, but only some time after."""
        shell.run(["ip", "-n", self.namespace.name, "link", "delete", _port(cable)], check=False)

    def cut(self, cable: str) -> None:
        self.namespace.ip(f"link set {_port(cable)} down")

    def heal(self, cable: str) -> None:
        """Undo both `cut` and `slow`; safe when neither was done."""
        for namespace, device in self._ends(cable):
            shell.run(["tc", "-n", namespace.name, "qdisc", "delete", "dev", device, "root"], check=False)
        self.namespace.ip(f"link set {_port(cable)} up")

    def slow(self, cable: str, rate: str) -> None:
        """Let no more than this rate (as tc writes it: 10mbit) through, in each direction."""
        bucket = ["tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE]
        for namespace, device in self._ends(cable):
            shell.run(["tc", "-n", namespace.name, "qdisc", "replace", "dev", device, "root", *bucket])

    def _ends(self, cable: str) -> list[tuple[Namespace, str]]:
        return [(self.namespace, _port(cable)), (Namespace.of(self.lab, cable), "eth0")]


def _port(cable: str) -> str:
    return f"p-{cable}"
