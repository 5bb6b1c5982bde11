"""TAB, in the shells themselves: commands, hosts, containers, migrations, as the Debian package installs it."""

import asyncio
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.deb import completion
from protocol.status import Phase
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost

PATIENCE = 30.0


def environment(mosquitto: Mosquitto, folder: Path) -> dict[str, str]:
    """A person whose `transship` is on the path, and who has said where the broker is."""
    program = folder / "bin/transship"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent.cli.main "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "TERM": "dumb",
        "PS1": "> ",
        "LC_ALL": "C.UTF-8",
        "TRANSSHIP_BROKER__HOST": "127.0.0.1",
        "TRANSSHIP_BROKER__PORT": str(mosquitto.port),
        "TRANSSHIP_BROKER__TLS": "false",
    }


class Terminal:
    """A shell on a terminal: type, and see what comes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def types(self, keys: str, until: str) -> str:
        os.write(self._descriptor, keys.encode())
        seen, end = "", time.monotonic() + PATIENCE
        while until not in seen:
            assert time.monotonic() < end, f"no {until!r} in {seen!r}"
            if select.select([self._descriptor], [], [], 0.2)[0]:
                seen += os.read(self._descriptor, 65536).decode(errors="replace")
        return seen


@contextmanager
def terminal(argv: list[str], environ: dict[str, str]) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True)
    os.close(theirs)
    try:
        yield Terminal(ours)
    finally:
        shell.kill()
        shell.wait(PATIENCE)
        os.close(ours)


async def test_bash_completes_commands_containers_hosts_and_migrations(
    mosquitto: Mosquitto, hosts: None, node_a: StoryHost, tmp_path: Path
) -> None:
    (tmp_path / "completion").write_text(completion("bash"))
    node_a.hold = Phase.COPYING
    environ = environment(mosquitto, tmp_path)
    argv = [str(tmp_path / "bin/transship"), "migrate", "web", "--to", "node-b", "--detach"]
    await asyncio.to_thread(subprocess.run, argv, env=environ, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    [migration] = node_a.open

    def typed() -> None:
        with terminal(["bash", "--norc", "--noprofile", "-i"], environ) as shell:
            shell.types(f". {tmp_path}/completion; complete -p transship\n", "-F _transship_completion transship")
            shell.types("transship evac\t", "evacuate ")
            shell.types("\x15transship migrate we\t", "migrate web ")
            shell.types("--to node-\t\t", "node-b")
            shell.types("\x15transship cancel m-\t", f"cancel {migration}")

    await asyncio.to_thread(typed)
    node_a.go.set()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
async def test_zsh_completes_at_the_first_tab(mosquitto: Mosquitto, hosts: None, tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_transship").write_text(completion("zsh"))

    def typed() -> None:
        with terminal(["zsh", "-f", "-i"], environment(mosquitto, tmp_path)) as shell:
            shell.types(
                f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D; echo re''ady\n", "ready\r\n"
            )
            shell.types("transship migrate we\t", "web")
            shell.types("\x15transship evac\t", "uate")

    await asyncio.to_thread(typed)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
async def test_fish_completes(mosquitto: Mosquitto, hosts: None, tmp_path: Path) -> None:
    (tmp_path / "transship.fish").write_text(completion("fish"))
    environ = environment(mosquitto, tmp_path)

    def offered(line: str) -> str:
        script = f"source {tmp_path}/transship.fish; complete --do-complete '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", script],
            env=environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout

    assert "evacuate\t" in await asyncio.to_thread(offered, "transship evac")
    assert "web\t" in await asyncio.to_thread(offered, "transship migrate we")
