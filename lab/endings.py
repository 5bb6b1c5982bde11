"""Why a container's process has ended when nobody meant it to: what dockerd has seen of it, and what the kernel says.

For a test that fails: a container that its restart policy has started anew shows nothing of its end itself.
"""

import json
from collections.abc import Iterator

from lab import shell
from lab.host import Host

SINCE = "20m"
MOST = 12
KERNEL = ("oom-kill", "Killed process", "segfault", "traps:", "general protection")


def of(host: Host, name: str) -> str:
    """One line after the other: dockerd's events of the container, its log, and what the kernel has ended."""
    lines = [*_events(host, name), *_log(host, name), *_kernel()]
    return "\n".join(lines) or "dockerd and the kernel say nothing of an end"


def _events(host: Host, name: str) -> Iterator[str]:
    wanted = ("--since", SINCE, "--until", "0s", "--filter", f"container={name}", "--format", "{{json .}}")
    for line in host.docker("events", *wanted, check=False).splitlines():
        event = json.loads(line)
        if not event["Action"].startswith("exec_"):
            about = event["Actor"]["Attributes"]
            more = {key: about[key] for key in ("exitCode", "signal", "execDuration") if key in about}
            yield f"{event['timeNano'] / 1e9:.3f} {event['Action']} {event['Actor']['ID'][:12]} {more or ''}".rstrip()


def _log(host: Host, name: str) -> list[str]:
    """What dockerd has written of it, and what containerd says of its shim."""
    identity = host.docker("inspect", "--format", "{{.Id}}", name, check=False)
    if not identity:
        return []
    lines = [
        f"{daemon}: {line}"
        for daemon in ("dockerd", "containerd")
        for line in host.node.log_tail(daemon, 2000).splitlines()
        if identity in line
    ]
    return lines[-MOST:]


def _kernel() -> list[str]:
    """What it has killed, of whichever container: its processes are named by the numbers of the outer machine."""
    lines = shell.run(["dmesg", "--time-format", "iso"], check=False).stdout.splitlines()
    return [line for line in lines if any(word in line for word in KERNEL)][-MOST:]
