"""Ways from this machine's loopback into a lab's network: the broker's ports, and what a host serves to a browser.

Each is a process of its own that ends with the machine in whose place it is recorded.
"""

import socket
import sys
from pathlib import Path

from lab import shell
from lab.network import Switch
from lab.node import Node


def start(switch: Switch, node: Node, name: str, port: int) -> int:
    """Have a free loopback port lead to a port of a machine, by a name in the machine's place; the loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        chosen = int(listener.getsockname()[1])
        _file(node, name).write_text(str(chosen))
        handle = str(listener.fileno())
        script = str(Path(__file__).with_name("relay.py"))
        argv = [sys.executable, script, handle, node.address.v4, str(port)]
        log = node.place / f"{name}.log"
        # nsenter becomes the command when no pid namespace is asked for: the number stays.
        relay = shell.detach(switch.namespace.enter(*argv), log, pass_fds=[listener.fileno()])
    relay.write(node.place / f"{name}.pid")
    return chosen


def port_of(node: Node, name: str) -> int:
    return int(_file(node, name).read_text())


def _file(node: Node, name: str) -> Path:
    return node.place / f"{name}.port"
