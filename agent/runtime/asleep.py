"""Where hibernated containers sleep, and what must be as it was for one to wake. Both sides import this.

/var/lib/transship/hibernated/          root only, and on a disk: it outlives a reboot
    ID.part/        being written; the container is frozen, not dead
    ID/             asleep: complete, fsynced, and the container has ended or is about to
    ID.waking/      claimed by a `create` of the container, in one rename; `released` in it: used, whatever became of it
    said/           agent <- runtime    a file for each thing that the runtime has done
    poke            fifo, runtime -> agent: look there

In a folder: asleep.json (written last), images/, work/, criu.conf, and the scripts of a hand-over (handover.py), with
`awake` for what is undone once dockerd has attached the network.
"""

import hashlib
import json
import os
import shutil
import stat
from typing import Any

ROOT = "/var/lib/transship/hibernated"
PART = ".part"
WAKING = ".waking"
SAID = "said"
POKE = "poke"

RECORD = "asleep.json"
CRIU_CONF_KEPT = "criu.conf.kept"
AWAKE = "awake"
UNLOCK = "unlock.nft"
STAND_DOWN = "addresses.down"
RELEASED = "released"
IN_USE = "in-use"
PID = "pid"

COLD = "cold"
DOWN = "down"

Json = dict[str, Any]


def folder(container_id: str) -> str:
    return f"{ROOT}/{container_id}"


def use_up(waking: str) -> None:
    """Remove what was claimed, so that a crash at any moment leaves it used, or gone: never as something that sleeps.

    `released` says so, and goes last.
    """
    with open(f"{waking}/{RELEASED}", "a"):  # noqa: PTH123
        pass
    sync(f"{waking}/{RELEASED}")
    sync(waking)
    for name in os.listdir(waking):  # noqa: PTH208
        path = f"{waking}/{name}"
        if name == RELEASED:
            continue
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            shutil.rmtree(path)
        else:
            os.unlink(path)  # noqa: PTH108
    sync(waking)
    os.unlink(f"{waking}/{RELEASED}")  # noqa: PTH108
    os.rmdir(waking)  # noqa: PTH106


def fingerprint(config: Json, upper: str, criu: str) -> Json:
    """What the images depend on: the host's kernel and CRIU, the container's configuration and its writable layer."""
    return {
        "kernel": f"{os.uname().release} {os.uname().machine}",
        "criu": criu,
        "processor": processor(),
        "configuration": configuration(config),
        "files": tree(upper),
    }


def changed(before: Json, now: Json) -> list[str]:
    """What is not as it was, by the words of `fingerprint`; a processor that can more is as good."""
    other = [key for key in ("kernel", "criu", "configuration", "files") if before.get(key) != now.get(key)]
    return other + ["processor"] * bool(set(before["processor"]) - set(now["processor"]))


def processor() -> list[str]:
    """What a program may have found out at its start that it can use."""
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return sorted(value.split())
    return []


def configuration(config: Json) -> str:
    """What the user can have changed, not what dockerd words anew at each start, nor limits that may be changed."""
    process, linux = config.get("process", {}), config.get("linux", {})
    known = [
        *(process.get(key) for key in ("args", "cwd", "user", "terminal")),
        sorted(process.get("env") or []),
        sorted((mount["destination"], mount.get("type", "")) for mount in config.get("mounts", [])),
        sorted(one["type"] for one in linux.get("namespaces", [])),
        *(linux.get(key) or [] for key in ("uidMappings", "gidMappings", "maskedPaths", "readonlyPaths")),
        sorted((linux.get("sysctl") or {}).items()),
        [config.get("hostname"), config.get("root", {}).get("readonly", False)],
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def tree(root: str) -> str:
    """Every file of a tree by name, kind, size and times. Whoever writes one changes its time of change: `docker cp`
    into a stopped container does, and so does a `touch` that sets the other time back.
    """
    digest = hashlib.sha256(b"" if os.path.isdir(root) else b"gone")  # noqa: PTH112
    for path, folders, names in os.walk(root):
        folders.sort()
        digest.update(f"{os.path.relpath(path, root)} {os.lstat(path).st_mtime_ns}\n".encode(errors="surrogateescape"))
        for name in sorted(names):
            found = os.lstat(os.path.join(path, name))  # noqa: PTH118
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            line = f"{name} {found.st_mode} {size} {found.st_mtime_ns} {found.st_ctime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def sync(path: str) -> None:
    """What a folder or file has by now outlives a crash of the host."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
