"""What the kernel counts: bytes on a cable, processor time of a machine, memory and time of a daemon."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from lab import shell
from lab.node import Node
from lab.shell import LabError, Proc

_TICKS = os.sysconf("SC_CLK_TCK")


def sent_bytes(node: Node) -> int:
    """Count what this machine has put on its cable so far."""
    shown = shell.run(["ip", "-json", "-stats", "-n", node.namespace.name, "link", "show", "dev", "eth0"]).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def machine_seconds(node: Node) -> float:
    """Processor seconds of everything that ever ran in this machine."""
    for line in (node.place / "cgroups").read_text().splitlines():
        usage, stat = Path(line) / "cpuacct.usage", Path(line) / "cpu.stat"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        if stat.exists() and "usage_usec" in (text := stat.read_text()):
            return int(text.split("usage_usec", 1)[1].split()[0]) / 1e6
    raise LabError(f"no cgroup of {node.name} counts processor time")


def load() -> float:
    return round(os.getloadavg()[0], 2)


def available_mib() -> float:
    return _field(Path("/proc/meminfo"), "MemAvailable") / 1024


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process that does the moving."""

    process: Proc

    @classmethod
    def of(cls, node: Node, name: str) -> "Daemon":
        process = node.daemon(name)
        if process is None:
            raise LabError(f"{name} on {node.name} does not run")
        return cls(process)

    @property
    def _folder(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    def forget_peak(self) -> None:
        """Let VmHWM begin anew at what it has now."""
        (self._folder / "clear_refs").write_text("5\n")

    def peak_mib(self) -> float:
        return _field(self._folder / "status", "VmHWM") / 1024

    def rss_mib(self) -> float:
        return _field(self._folder / "status", "VmRSS") / 1024

    def anonymous_mib(self) -> float:
        return _field(self._folder / "status", "RssAnon") / 1024

    def seconds(self) -> float:
        """Processor time, that of its ended children included."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS


@dataclass(frozen=True, slots=True)
class Usage:
    """Both machines at one moment."""

    at: float
    sent: int
    cpu: float

    @classmethod
    def of(cls, source: Node, target: Node) -> "Usage":
        return cls(time.monotonic(), sent_bytes(source), machine_seconds(source) + machine_seconds(target))

    def cpu_rate(self, since: "Usage") -> float:
        return (self.cpu - since.cpu) / (self.at - since.at)


def _field(file: Path, name: str) -> float:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return float(value.split()[0])
    raise LabError(f"{file} has no {name}")
