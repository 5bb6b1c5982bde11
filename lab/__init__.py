"""Real Docker hosts on one machine, for the demo, the end-to-end tests and the benchmarks.

Each host is a set of namespaces with its own root file system, dockerd and containerd; a broker and a client
hang on the same switch. `Lab` builds and removes it all; `python -m lab` is the same for a person.
Nothing of the product lives here, and the product imports nothing of it (the lab borrows `agent.base.pki`).
"""

from lab.host import Engine, Host, HostSpec
from lab.lab import Lab
from lab.shell import CommandFailed, LabError

__all__ = ["CommandFailed", "Engine", "Host", "HostSpec", "Lab", "LabError"]
