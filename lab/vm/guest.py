"""Runs inside a machine of the VM lab, as a service: does what the lab asks for over a virtio port.

A line of JSON each way. The lab asks with one command; the answer is any number of `out` and one `code`. One command
runs at a time. Standard library only: it stands alone on the machine's disk.
"""

import codecs
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

_PORT = "/dev/virtio-ports/transship"
_DEVICE_SECONDS = 120
_T = TypeVar("_T")
_TOO_LONG = 124  # as timeout(1) has it


def main() -> int:
    _set_address()
    handle = _open_port()
    with open(handle, "rb", closefd=False) as requests, open(handle, "wb", buffering=0, closefd=False) as answers:
        _say(answers, ready=True)
        for line in requests:
            _run(answers, **json.loads(line))
    return 0  # the lab has gone; so will the machine


def _set_address() -> None:
    """Give the machine the address that its kernel command line names, if any."""
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    if address := words.get("transship.address"):
        card = _patiently(_card)
        for argv in (["address", "replace", address, "dev", card], ["link", "set", card, "up"]):
            subprocess.run(["ip", *argv], check=True)


def _card() -> str:
    for path in Path("/sys/class/net").iterdir():
        if (path / "device").exists():
            return path.name
    raise OSError("there is no network card")


def _open_port() -> int:
    return _patiently(lambda: os.open(_PORT, os.O_RDWR))


def _patiently(find: Callable[[], _T]) -> _T:
    """Try until it is there: udev finds devices some time during the boot."""
    end = time.monotonic() + _DEVICE_SECONDS
    while True:
        try:
            return find()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _run(answers: BinaryIO, argv: list[str], timeout: float, stdin: str, env: dict[str, str], cwd: str) -> None:
    end = time.monotonic() + timeout
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd,
            env=os.environ | env, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        _say(answers, out=f"{argv[0]}: {error}\n")
        _say(answers, code=127)
        return
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(stdin.encode())
    ended = _follow(process, answers, end)
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    _say(answers, code=code if ended else _TOO_LONG)


def _follow(process: "subprocess.Popen[bytes]", answers: BinaryIO, end: float) -> bool:
    """Pass on what a command says until it ends; False if it does not end in time."""
    assert process.stdout is not None
    output, decoder = process.stdout.fileno(), codecs.getincrementaldecoder("utf-8")("replace")
    os.set_blocking(output, False)
    # Its end counts, not that of its output: daemons that it leaves behind may hold that open.
    death = os.pidfd_open(process.pid)
    sources = [output, death]
    try:
        while True:
            ready, _, _ = select.select(sources, [], [], max(0.0, end - time.monotonic()))
            if output in ready:
                data = os.read(output, 65536)
                _say(answers, out=decoder.decode(data))
                if not data:
                    sources.remove(output)
            else:
                return death in ready
    finally:
        os.close(death)


def _say(answers: BinaryIO, **what: Any) -> None:
    data = json.dumps(what).encode() + b"\n"
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    sys.exit(main())
