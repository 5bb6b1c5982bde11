"""Every field of `docker inspect`, and what a move makes of it: the table behind docs/fidelity.md.

Known are Docker 26 (API 1.45) to 28.5 (1.51). A field that is not here came with an engine that nobody has looked at
yet: spec.py passes it on where it can and says so, and the fidelity test fails.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final


class Fate(StrEnum):
    KEPT = "kept"  # the same value on the target
    REFUSED = "refused"  # some values stand against a move (obstacles.py); the others are kept
    RECREATED = "recreated"  # made again by the target's engine; may have another value
    IGNORED = "ignored"  # says nothing that could be kept


@dataclass(frozen=True, slots=True)
class Field:
    path: str
    fate: Fate
    reason: str = ""


# Rows: where, fate, names, reason. `Networks.*` is any network; `[]` any element of a list.
_ROWS: Final = (
    ("", Fate.KEPT, "Name Path Args Platform", ""),
    ("", Fate.RECREATED, "Id Created RestartCount", "it is a new container for the target's engine"),
    ("", Fate.RECREATED, "Image ImageManifestDescriptor", "the same layers; each image store has its own id for them"),
    ("", Fate.RECREATED, "ResolvConfPath HostnamePath HostsPath LogPath", "files of the engine"),
    ("", Fate.RECREATED, "Driver", "the storage driver of the target"),
    ("", Fate.RECREATED, "MountLabel ProcessLabel", "given by the target's security modules"),
    ("", Fate.RECREATED, "AppArmorProfile", "Docker's own where none was named; one that is missing there is refused"),
    ("", Fate.REFUSED, "ExecIDs", "a running exec is no part of the dump"),
    ("", Fate.IGNORED, "Node SizeRw SizeRootFs", "of Swarm's old API, or only shown when asked for"),
    ("GraphDriver", Fate.RECREATED, "Name Data", "where the target keeps the files"),
    ("State", Fate.KEPT, "Status Running", ""),
    ("State", Fate.REFUSED, "Paused Restarting Dead", "only a running container can be moved"),
    ("State", Fate.RECREATED, "Pid StartedAt", "the target started it"),
    ("State", Fate.RECREATED, "Health", "begins as `starting` until the next probe, with no failure counted"),
    ("State", Fate.IGNORED, "OOMKilled ExitCode Error FinishedAt", "of an earlier end"),
    (
        "Config",
        Fate.KEPT,
        (
            "Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts OpenStdin StdinOnce Env Cmd "
            "Healthcheck ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled OnBuild Labels StopSignal "
            "StopTimeout Shell"
        ),
        "",
    ),
    ("Config", Fate.REFUSED, "Tty", "the other end of the terminal is on the source"),
    ("Config", Fate.RECREATED, "MacAddress", "shows the address on the first network, also where the move pinned it"),
    (
        "HostConfig",
        Fate.KEPT,
        (
            "Binds ContainerIDFile LogConfig PortBindings RestartPolicy AutoRemove VolumeDriver ConsoleSize "
            "Annotations CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd Cgroup OomScoreAdj "
            "PublishAllPorts ReadonlyRootfs SecurityOpt StorageOpt Tmpfs ShmSize Init MaskedPaths ReadonlyPaths"
        ),
        "",
    ),
    (
        "HostConfig",
        Fate.KEPT,
        (
            "CpuShares Memory NanoCpus CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps "
            "BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod "
            "CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules "
            "KernelMemory KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit "
            "Ulimits"
        ),
        "",
    ),
    ("HostConfig", Fate.IGNORED, "CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth Isolation", "of Windows"),
    ("HostConfig", Fate.REFUSED, "NetworkMode", "another container's network"),
    (
        "HostConfig",
        Fate.REFUSED,
        "IpcMode PidMode UTSMode UsernsMode",
        "a namespace shared with the host or a container",
    ),
    ("HostConfig", Fate.REFUSED, "Privileged", "it has all devices of the source"),
    ("HostConfig", Fate.REFUSED, "DeviceRequests", "GPUs and the like have state of their own"),
    ("HostConfig", Fate.REFUSED, "Links", "legacy links lead to containers that stay behind"),
    ("HostConfig", Fate.RECREATED, "Runtime", "the target's runtime that restores"),
    ("HostConfig", Fate.KEPT, "Sysctls", "settings of an interface stand with its network from Docker 28 on"),
    ("HostConfig", Fate.KEPT, "Mounts", "mounts that were borrowed by --volumes-from are added"),
    ("HostConfig", Fate.RECREATED, "VolumesFrom", "the mounts that it lent are written out one by one"),
    ("Mounts[]", Fate.KEPT, "Type Destination Driver RW", ""),
    ("Mounts[]", Fate.KEPT, "Name", "that of an anonymous volume is of Docker's choice again"),
    ("Mounts[]", Fate.RECREATED, "Source", "where the target keeps the volume; of a bind mount it is kept"),
    ("Mounts[]", Fate.RECREATED, "Mode Propagation", "follow from Binds and Mounts"),
    ("NetworkSettings", Fate.RECREATED, "Bridge SandboxID SandboxKey", "the target's network sandbox"),
    (
        "NetworkSettings",
        Fate.RECREATED,
        "Ports",
        "one of Docker's choice is chosen again, one by number is the same",
    ),
    (
        "NetworkSettings",
        Fate.IGNORED,
        "HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen SecondaryIPAddresses SecondaryIPv6Addresses",
        "never set",
    ),
    (
        "NetworkSettings",
        Fate.IGNORED,
        "EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway MacAddress",
        "a copy of Networks.bridge",
    ),
    ("NetworkSettings.Networks.*", Fate.KEPT, "Links Aliases DriverOpts GwPriority", ""),
    (
        "NetworkSettings.Networks.*",
        Fate.RECREATED,
        "NetworkID EndpointID Gateway IPv6Gateway",
        "of the target's network",
    ),
    ("NetworkSettings.Networks.*", Fate.RECREATED, "IPAMConfig", "also shows the addresses that the move pinned"),
    (
        "NetworkSettings.Networks.*",
        Fate.RECREATED,
        "IPAddress IPPrefixLen GlobalIPv6Address GlobalIPv6PrefixLen MacAddress",
        "kept but on the default bridge, which takes no wishes, and where the target's network has another subnet",
    ),
    ("NetworkSettings.Networks.*", Fate.RECREATED, "DNSNames", "the old short id stays as the host name"),
)

KNOWN_FIELDS: Final[Mapping[str, Field]] = {
    path: Field(path, fate, reason)
    for where, fate, names, reason in _ROWS
    for path in (f"{where}.{name}".lstrip(".") for name in names.split())
}

# As the table says, but no container of the end-to-end tests says anything of them, and why.
NOT_TRIED: Final[Mapping[str, str]] = {
    f"{where}.{name}": f"not tried: {reason}"
    for where, names, reason in (
        ("State", "Dead", "what can't be removed, and comes about by bad luck only"),
        ("HostConfig", "DeviceRequests", "the lab's machine has no GPU"),
        ("Config", "ArgsEscaped", "of Windows"),
        ("Config", "OnBuild Shell", "of an image; no container shows it"),
        ("Config", "NetworkDisabled", "of images for engines that are long gone"),
        ("HostConfig", "Cgroup", "of engines that are long gone"),
        ("HostConfig", "ConsoleSize", "of a terminal"),
        ("HostConfig", "BlkioWeight BlkioWeightDevice", "the lab's kernel has no limits for block devices"),
        (
            "HostConfig",
            "BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps",
            "the lab's kernel has no limits for block devices",
        ),
        ("HostConfig", "CpuRealtimePeriod CpuRealtimeRuntime", "dockerd needs a real-time share for it"),
        ("HostConfig", "KernelMemory KernelMemoryTCP", "no longer taken by Docker"),
        ("HostConfig", "StorageOpt", "needs xfs with quotas below Docker"),
        ("NetworkSettings.Networks.*", "Links", "legacy links stand against a move"),
    )
    for name in names.split()
}
Shown = Mapping[str, Sequence[str]]
"""By field, the containers of the end-to-end tests that use it."""
NOTHING: Final[Shown] = {}
BEGIN: Final = "<!-- fields: TRANSSHIP_WRITE_DOCS=1 scripts/test e2e -k test_fidelity.py -->"
END: Final = "<!-- /fields -->"
_OF_DOCKERS_CHOICE: Final = re.compile("[0-9a-f]{64}")

# What is looked into; every other value is one field, whatever is in it.
_INNER: Final = {"Config", "HostConfig", "State", "GraphDriver", "NetworkSettings"}
_EVERY: Final = {"NetworkSettings.Networks": ".*", "Mounts": "[]"}


def fields_of(inspect: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The fields of an inspect: path in the table, path in this container, value."""
    yield from _walk(inspect, "", "")


def _walk(node: Mapping[str, Any], path: str, shown: str) -> Iterator[tuple[str, str, Any]]:
    for key, value in node.items():
        here, there = f"{path}.{key}".lstrip("."), f"{shown}.{key}".lstrip(".")
        if here in _INNER:
            yield from _walk(value or {}, here, there)
        elif here in _EVERY:
            named = value if isinstance(value, dict) else {mount["Destination"]: mount for mount in value or ()}
            for name, entry in named.items():
                yield from _walk(entry or {}, here + _EVERY[here], f"{there}[{name}]")
        else:
            yield here, there, value


def unknown_fields(inspect: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that this table does not have."""
    return tuple(sorted({path for path, _, _ in fields_of(inspect) if path not in KNOWN_FIELDS}))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """What is not as it was though the table says kept, each a sentence; empty when the move was faithful."""
    was = {shown: (path, value) for path, shown, value in fields_of(before)}
    now = {shown: (path, value) for path, shown, value in fields_of(after)}
    found: list[str] = []
    for shown in sorted(was | now):
        path, old = was.get(shown) or (now[shown][0], None)
        new = now[shown][1] if shown in now else None
        field = KNOWN_FIELDS.get(path)
        if field is None:
            found.append(f"{shown} is not known")
        elif field.fate in (Fate.KEPT, Fate.REFUSED) and not _same(path, old, new):
            found.append(f"{shown} was {old!r} and is {new!r}")
    return tuple(found)


def _same(path: str, old: Any, new: Any) -> bool:
    if path == "HostConfig.MemorySwappiness":  # there 0 is a wish, and null is none
        return bool(old == new)
    if path == "HostConfig.Mounts":
        old, new = _unlabelled(old), _unlabelled(new)
    if path == "Mounts[].Name" and all(_OF_DOCKERS_CHOICE.fullmatch(str(name)) for name in (old, new)):
        return True
    # Engines differ in which of null, [], {}, "", 0 and false they show for nothing.
    return bool((old or None) == (new or None))


def _unlabelled(mounts: Any) -> Any:
    """Docker 28 labels the anonymous volumes among them."""
    found = json.loads(json.dumps(mounts or []))
    for entry in found:
        (entry.get("VolumeOptions", {}).get("Labels") or {}).pop("com.docker.volume.anonymous", None)
    return found


def as_markdown(shown: Shown) -> str:
    """The table for docs/fidelity.md."""
    rows = [
        f"| `{field.path}` | {field.fate} | {_cell(field.reason)} | {_cell(_evidence(field.path, shown))} |"
        for field in KNOWN_FIELDS.values()
    ]
    head = ["| field of docker inspect | on the target | | shown by |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]).replace("  ", " ") + "\n"


def _evidence(path: str, shown: Shown) -> str:
    return NOT_TRIED.get(path) or ", ".join(sorted(shown.get(path, ())))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(text: str, shown: Shown = NOTHING) -> str:
    """The page with the table of now between its marks.

    `shown` are the containers of the end-to-end tests that use a field; of the others, what the page says so far stays.
    """
    before, mark, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{as_markdown({**_shown_so_far(table), **shown})}\n{END}{after}"


def _shown_so_far(table: str) -> Shown:
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): tuple(row[3].split(", ")) for row in rows if len(row) == 4 and row[3]}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.migration.fields", description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", metavar="FILE", type=Path, help="bring the table in this page up to date")
    path: Path | None = parser.parse_args(arguments).write
    if path is None:
        sys.stdout.write(as_markdown(NOTHING))
    else:
        path.write_text(page(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
