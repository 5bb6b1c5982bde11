"""Where the program begins: an agent that stays for months holds nothing of the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.__main__ import plain_agent


@pytest.fixture(scope="module")
def resident() -> dict[str, Any]:
    """What a process has in it that is to be an agent for months."""
    program = """
import json, os, sys
from pathlib import Path
before = dict(os.environ)
from agent.__main__ import plain_agent, sparing
assert plain_agent(["agent", "-v"])
with sparing():
    import agent.daemon
import aiohttp.connector
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "files": Path("/proc/self/maps").read_text(),
    "authorities": aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"],
    "environment": dict(os.environ) == before,
}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("library", ["typer", "rich", "textual", "cryptography", "prometheus_client"])
def test_the_agent_does_not_hold_what_it_seldom_or_never_needs(resident: dict[str, Any], library: str) -> None:
    assert "aiohttp" in resident["modules"]
    assert library not in resident["modules"]


def test_the_agent_holds_neither_the_web_s_authorities_nor_the_library_of_c_plus_plus(resident: dict[str, Any]) -> None:
    assert resident["authorities"] == 0
    assert "libcrypto" in resident["files"]
    assert "libstdc++" not in resident["files"]


def test_what_the_agent_starts_sees_nothing_of_how_it_was_imported(resident: dict[str, Any]) -> None:
    assert resident["environment"] is True


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["agent"], (None, 0)),
        (["agent", "-v"], (None, 1)),
        (["agent", "--config", "/x.toml", "-vv"], (Path("/x.toml"), 2)),
        (["agent", "--verbose", "--config=/x.toml"], (Path("/x.toml"), 1)),
        (["agent", "--help"], None),
        (["agent", "--config"], None),
        (["agent", "--conf", "/x.toml"], None),
        (["agent", "more"], None),
        (["--no-tls", "agent"], None),
        (["hosts"], None),
        ([], None),
    ],
)
def test_an_agent_as_a_service_has_it_passes_the_command_line_by(
    monkeypatch: pytest.MonkeyPatch, words: list[str], wanted: tuple[Path | None, int] | None
) -> None:
    monkeypatch.delenv("TRANSSHIP_CONFIG", raising=False)
    assert plain_agent(words) == wanted


def test_the_file_of_the_environment_is_taken_where_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSSHIP_CONFIG", "/y.toml")
    assert plain_agent(["agent"]) == (Path("/y.toml"), 0)
    assert plain_agent(["agent", "--config", "/x.toml"]) == (Path("/x.toml"), 0)
