"""What a lab calls its things on this machine. Two checkouts side by side take different prefixes."""

import os
from pathlib import Path
from typing import Final

_DEFAULT: Final = "tsl"
# Every namespace of every lab begins with it; what begins with the lab's name too is that lab's.
PREFIX: Final = os.environ.get("TRANSSHIP_LAB_PREFIX", _DEFAULT)
_SUFFIX: Final = "" if PREFIX == _DEFAULT else f"-{PREFIX}"
CGROUP: Final = f"transship-lab{_SUFFIX}"


def state_folder() -> Path:
    return Path(os.environ.get("TRANSSHIP_LAB_STATE", f"/var/tmp/transship-lab{_SUFFIX}"))
