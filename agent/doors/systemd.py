"""What systemd is told of the agent: ready, stopping, alive, more time. Nothing where it was not started by systemd."""

import contextlib
import os
import socket

from agent.base.errors import AgentError
from agent.base.shell import Shell


def notify(*lines: str) -> None:
    """Send state lines (sd_notify(3)); silent where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as unix:
        unix.connect(address)
        unix.send("\n".join(lines).encode())


def runs_us() -> bool:
    return bool(os.environ.get("NOTIFY_SOCKET"))


async def host_goes_down(shell: Shell) -> bool:
    """Whether systemd stops us with all the rest, not for our own restart or upgrade."""
    if not runs_us():
        return False
    with contextlib.suppress(AgentError):
        done = await shell.run("systemctl", "is-system-running", label="systemctl", timeout=10, check=False)
        return done.stdout.strip() == "stopping"
    return False


def watchdog_seconds() -> float | None:
    """How often to say WATCHDOG=1: half of what the unit asks for; None where it asks for nothing."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdigit() and int(text) > 0 else None
