"""The program itself against a real broker: its exit codes, its pipes, its terminal, what it offers a shell."""

import asyncio
import json
import os
import pty
import signal
import sys
from pathlib import Path

from agent.cli.output import NO_BROKER, REFUSED
from protocol.status import Phase
from tests.contract.cli_support import PATIENCE
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost


def program(mosquitto: Mosquitto, *words: str) -> list[str]:
    return [sys.executable, "-m", "agent.cli.main", "--broker", f"127.0.0.1:{mosquitto.port}", "--no-tls", *words]


async def ran(*argv: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_program_moves_a_container_and_prints_plain_lines_into_a_pipe(mosquitto: Mosquitto, hosts: None) -> None:
    code, out, err = await ran(*program(mosquitto, "migrate", "web", "--to", "node-b"))
    assert (code, err) == (0, "")
    assert "web: node-a -> node-b: done" in out
    assert "blackout: " in out
    assert "\x1b" not in out


async def test_program_without_broker_ends_with_4(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    code, out, err = await ran(*program(mosquitto, "ps"))
    assert (code, out) == (NO_BROKER, "")
    assert "Connection refused" in err
    code, out, _ = await ran(*program(mosquitto, "ps", "--json"))
    assert code == NO_BROKER
    assert json.loads(out)["error"]["code"] == "broker-unavailable"


async def test_wrong_usage_is_json_too(mosquitto: Mosquitto) -> None:
    code, out, _ = await ran(*program(mosquitto, "migrate", "web", "--json"))
    assert code == REFUSED
    assert json.loads(out)["error"]["code"] == "bad-command"


async def test_shell_is_offered_commands_hosts_and_containers(mosquitto: Mosquitto, hosts: None) -> None:
    async def offered(*words: str) -> str:
        line = ["transship", *words]
        environment = {
            "_TRANSSHIP_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(line),
            "COMP_CWORD": str(len(line) - 1),
            "TRANSSHIP_BROKER__HOST": "127.0.0.1",
            "TRANSSHIP_BROKER__PORT": str(mosquitto.port),
            "TRANSSHIP_BROKER__TLS": "false",
        }
        _, out, err = await ran(sys.executable, "-m", "agent.cli.main", environment=environment)
        assert err == ""
        return out

    assert set((await offered("mig")).split()) == {"migrate", "migrations"}
    assert set((await offered("migrate", "web", "--to", "node")).split()) == {"node-a", "node-b"}
    assert (await offered("migrate", "w")).split() == ["web"]
    mosquitto.stop()
    assert (await offered("migrate", "w")).split() == []


async def test_ctrl_c_ends_the_watching_and_says_how_to_cancel(
    mosquitto: Mosquitto, hosts: None, node_a: StoryHost
) -> None:
    node_a.hold = Phase.COPYING
    process = await asyncio.create_subprocess_exec(
        *program(mosquitto, "migrate", "web", "--to", "node-b", "--json"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while json.loads(await process.stdout.readline()).get("phase") != "copying":
            pass
        process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).splitlines()
        assert await process.wait() == 130
    said = json.loads(rest[-1])
    assert said["interrupted"] is True
    assert f"transship cancel {said['migration']}" in said["message"]
    assert said["migration"] in node_a.open
    node_a.go.set()


async def test_terminal_gets_the_live_view_and_the_picture(
    mosquitto: Mosquitto, hosts: None, node_a: StoryHost, tmp_path: Path
) -> None:
    node_a.pace = 0.1
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *program(mosquitto, "migrate", "web", "--to", "node-b"),
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    seen = await asyncio.to_thread(_read_all, ours)
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 0
    assert "its memory goes over" in seen
    assert "✔" in seen
    assert "blackout" in seen


def _read_all(terminal: int) -> str:
    text = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            chunk = b""
        if not chunk:
            os.close(terminal)
            return text.decode(errors="replace")
        text += chunk
