"""What a processor can do, by CRIU's own account of it, and whether that would do for a restore from another host.

`criu cpuinfo dump` writes one small image; `criu cpuinfo check` compares such an image with the processor it runs on.
A program chooses its instructions when it begins: on a processor without one of them it dies by SIGILL, minutes later.
"""

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Final

from agent.base.errors import AgentError
from agent.base.shell import Shell

IMAGE: Final = "cpuinfo.img"
SECONDS: Final = 10.0
NOT_READ: Final = "its source's account of the processor can't be read"


async def dumped(shell: Shell) -> str:
    """The image of this processor, base64; empty where CRIU knows nothing of this architecture."""
    with tempfile.TemporaryDirectory(prefix="transship-cpu-") as folder:
        try:
            await shell.run("criu", "cpuinfo", "dump", "--images-dir", folder, label="criu", timeout=SECONDS)
            return base64.b64encode((Path(folder) / IMAGE).read_bytes()).decode()
        except (AgentError, OSError):
            return ""


async def lacking(shell: Shell, image: str) -> str:
    """What this processor lacks of the one in the image, in CRIU's words; empty if it has all of it.

    Raises:
        AgentError: CRIU could not be run.

    """
    try:
        content = base64.b64decode(image, validate=True)
    except binascii.Error:
        return NOT_READ
    with tempfile.TemporaryDirectory(prefix="transship-cpu-") as folder:
        (Path(folder) / IMAGE).write_bytes(content)
        argv = ("criu", "cpuinfo", "check", "--images-dir", folder)
        done = await shell.run(*argv, label="criu", timeout=SECONDS, check=False)
    return "" if done.code == 0 else _said(done.stderr_tail)


def _said(lines: tuple[str, ...]) -> str:
    """The first of CRIU's error lines, without its time and place."""
    errors = [line.partition("Error")[2].partition("):")[2].strip() for line in lines if "Error" in line]
    return next(filter(None, errors), "it has not all that the source's processor has")
