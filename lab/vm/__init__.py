"""The VM lab: the same lab inside a machine with a stock kernel, cgroup v2 and systemd, emulated by qemu.

`Machine` is one such machine, `running_pair()` two on one network, `checkout.run()` what `python -m lab vm` does;
`installed.hosts()` are machines as a user's hosts are, with Docker and the agent from units.
"""

from lab.vm.machine import Machine, Output, Spec, running, running_pair

__all__ = ["Machine", "Output", "Spec", "running", "running_pair"]
