"""What is on a host when all has ended: its containers by dockerd's word, and what a move may have left behind."""

import contextlib
import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.chaos import kernel
from lab.chaos.accidents import prey
from lab.chaos.loads import NAME, VOLUME
from lab.host import Host

OURS = "/run/transship"
RUNCS = "/criu-root"
"""What runc mounts in its own folder for as long as CRIU restores."""
FOLDERS = "var/lib/docker/containers"
LOADED = "config.v2.json"
"""What dockerd makes a container of when it starts; of a folder without it it says `failed to load container`."""
SCRIPTS = ("runtime/restore.py", "runtime/pages.py", "runtime/launcher.sh")


class _OverUnix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def ask_docker(host: Host, path: str) -> Any:
    """A GET of dockerd's API; None where it says no, or does not answer."""
    connection = _OverUnix(f"/proc/{host.node.init().pid}/root/run/docker.sock")
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        return json.loads(content) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Listed:
    """A container of a host, by dockerd's word."""

    host: str
    id: str
    name: str
    running: bool
    policy: str


def containers(host: Host) -> list[Listed] | None:
    """Every one; None while dockerd does not say."""
    rows = ask_docker(host, "/containers/json?all=1")
    if rows is None:
        return None
    found = []
    for row in rows:
        full = ask_docker(host, f"/containers/{row['Id']}/json")
        if full is not None:
            state, policy = full["State"], full["HostConfig"]["RestartPolicy"]["Name"]
            name = full["Name"].lstrip("/")
            running = state["Running"] and not state["Paused"] and not state["Restarting"]
            found.append(Listed(host.name, row["Id"], name, running, policy))
    return found


def leftovers(host: Host) -> list[str]:
    """Whatever no move may leave: folders, mounts, locks, frozen or stopped tasks, processes, cgroups, names."""
    init = host.node.init().pid
    known = containers(host)
    if known is None:
        return ["dockerd does not answer"]
    ids = {container.id for container in known}
    found = [f"container {one.name} ({one.id[:12]})" for one in known if one.name != NAME]
    root = Path(f"/proc/{init}/root")
    found += _files(root)
    mounts = Path(f"/proc/{init}/mounts").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if OURS in line or RUNCS in line.split()[1]]
    if kernel.TABLE in (kernel.tables(init) or ()):
        found.append("a lock in the host's own network namespace")
    found += _held(host, ids)
    found += [f"process {process.pid} (criu)" for process in prey(host, ("criu",))]
    found += _scripts(host)
    if not known:
        found += [f"process {process.pid} (containerd-shim)" for process in prey(host, ("containerd-shim",))]
        volumes = ask_docker(host, "/volumes") or {}
        found += [f"volume {one['Name']}" for one in volumes.get("Volumes") or () if one["Name"] == VOLUME]
    loadable, _ = unknown_folders(root / FOLDERS, ids)
    return found + [f"dockerd's folder of {name[:12]}" for name in loadable]


def debris(host: Host) -> list[str] | None:
    """Folders of dockerd's own that it can't load itself, by their ids; None while dockerd does not answer.

    A dockerd that is killed in the middle of a `docker create` leaves one. Nobody was told its id.
    """
    known = containers(host)
    if known is None:
        return None
    return unknown_folders(Path(f"/proc/{host.node.init().pid}/root") / FOLDERS, {one.id for one in known})[1]


def unknown_folders(places: Path, ids: set[str]) -> tuple[list[str], list[str]]:
    """Folders of containers that dockerd does not have: those that are whole, and those that it can't load."""
    loadable: list[str] = []
    broken: list[str] = []
    with contextlib.suppress(OSError):
        for name in sorted({path.name for path in places.iterdir()} - ids):
            (loadable if (places / name / LOADED).exists() else broken).append(name)
    return loadable, broken


def _files(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root / OURS.lstrip("/")):
        inside = Path(folder).relative_to(root)
        # programs of `docker run --init`, from which containers run that have come here, are kept
        if len(inside.parts) >= 3 and inside.parts[2] != "init":
            found += [f"/{inside / name}" for name in (*folders, *files)]
        elif len(inside.parts) == 2:
            found += [f"/{inside / name}" for name in files]
    return found


def _held(host: Host, ids: set[str]) -> list[str]:
    """Cgroups of containers that dockerd does not have, and what keeps its own from going on."""
    found = []
    for copy in kernel.copies(host):
        if copy.container not in ids:
            found.append(f"cgroup of {copy.container[:12]}")
        if copy.freezer != "THAWED":
            found.append(f"{copy.container[:12]} is {copy.freezer}")
        if any(task.state in "Tt" for task in copy.tasks):
            found.append(f"tasks of {copy.container[:12]} are stopped")
        if copy.tasks and kernel.locked(copy):
            found.append(f"the network of {copy.container[:12]} is locked")
    return found


def _scripts(host: Host) -> list[str]:
    """Programs of ours that outlive an agent, by their command lines."""
    found = []
    for pid in kernel.processes(host):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(script in line for script in SCRIPTS):
                found.append(f"process {pid} ({line[:80]})")
    return found
