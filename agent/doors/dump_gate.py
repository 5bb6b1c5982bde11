"""The gate in front of a dump: runc and CRIU are started while the container runs, and wait here for the freeze.

CRIU calls a script at its stages. Before it looks at the container at all (`pre-dump`) the script waits for the agent's
word; when the last image is written (`post-dump`) it says so, some time before CRIU has let go of the tasks and runc
has ended. Only CRIU's own work on the frozen tasks is left in the blackout.
"""

import asyncio
import contextlib
import os
from pathlib import Path

WAITING, WRITTEN = "waiting", "written"
OPEN, SHUT = "open", "shut"
SCRIPT = """\
#!/bin/sh
# Called by CRIU at each stage. An agent that ends is an end of file at `pre-dump`: then nothing is dumped. Where it has
# ended before, the next one turns us away. What is said is written read-write: a fifo that nobody reads would hold
# CRIU, and the tasks in its hands, for ever.
case $CRTOOLS_SCRIPT_ACTION in
pre-dump)
    exec 3<{folder}/word
    echo waiting 1<>{folder}/said
    read -r word <&3
    [ "$word" = open ] ;;
post-dump)
    echo written 1<>{folder}/said ;;
esac
"""
NAME = "gate.sh"


class DumpGate:
    """Two fifos and a script in a folder of the dump."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heard = {WAITING: asyncio.Event(), WRITTEN: asyncio.Event()}
        self._word = self._said = -1
        self._rest = b""

    @property
    def script(self) -> Path:
        return self._folder / NAME

    def lay_out(self) -> None:
        """Make it, and listen; blocks for some microseconds."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for name in ("word", "said"):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self._folder / name, 0o600)
        self.script.write_text(SCRIPT.format(folder=self._folder))
        self.script.chmod(0o700)
        self._hold()
        self._said = os.open(self._folder / "said", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._said, self._read)

    def _hold(self) -> bool:
        """Have the fifo of the word open: as long as that is so it keeps what was written."""
        with contextlib.suppress(OSError):
            if self._word < 0:
                self._word = os.open(self._folder / "word", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._word >= 0

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self._said, 4096)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if event := self._heard.get(line.decode()):
                event.set()

    async def heard(self, what: str) -> None:
        """Wait until the script has said this; no deadline."""
        await self._heard[what].wait()

    def open(self) -> None:
        """Let CRIU pass."""
        self._say(OPEN)

    def shut(self) -> None:
        """Turn away whoever waits here, or will: CRIU fails, with nothing touched. Safe when nobody does."""
        self._say(SHUT)

    def _say(self, word: str) -> None:
        if self._hold():
            with contextlib.suppress(BlockingIOError):
                os.write(self._word, word.encode() + b"\n")

    def close(self) -> None:
        """Let go of the fifos."""
        if self._said >= 0:
            asyncio.get_running_loop().remove_reader(self._said)
        for fd in (self._word, self._said):
            if fd >= 0:
                os.close(fd)
        self._word = self._said = -1
