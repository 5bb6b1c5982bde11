"""Hosts without an agent, one of each engine, and the door to the dockerd of one."""

import hashlib
from pathlib import Path

from agent.doors.docker import Docker
from lab import Engine, Host, HostSpec

CHECKOUT = Path(__file__).parents[2]
NAME = "d" + hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]

HOSTS = [
    HostSpec("d26", Engine.DOCKER26),
    HostSpec("d28", Engine.DOCKER28),
    HostSpec("store28", Engine.DOCKER28, containerd_store=True),
]
# Without the controllers of cgroup v2, which belong to the outer machine: good for looking, not for limits.
CGROUP2 = HostSpec("cgroup2", Engine.DOCKER28, cgroup2=True)
# An OCI runtime that holds `create` until it is let go, as the agent's own does on a target.
HOLD = """#!/bin/sh
case " $* " in *" create "*) until [ -e /run/let-go ]; do sleep 0.05; done ;; esac
exec runc "$@"
"""
SLEEP = {"Image": "busybox", "Cmd": ["sleep", "1000"]}


def door(host: Host) -> Docker:
    """The door to a host's dockerd: its socket is reached through its root file system."""
    return Docker(f"unix:///proc/{host.node.init().pid}/root/run/docker.sock", timeout=20)
