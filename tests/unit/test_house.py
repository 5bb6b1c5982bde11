"""The house rules that a machine can check: imports go down, one importer a library, files stay small."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room may import the rooms below it, never one above or beside.
FLOORS = [
    {"agent.cli", "agent.daemon"},
    {
        *("agent.dispatcher", "agent.announcer", "agent.inventory", "agent.certificates"),
        *("agent.logs", "agent.metrics", "agent.dashboard"),
    },
    {"agent.shutdown", "agent.check"},
    {"agent.vault"},
    {"agent.migration"},
    {"agent.strategy"},
    {"agent.prework", "agent.network", "agent.checkpoint", "agent.doors", "agent.archive"},
    {"agent.base"},
    {"protocol"},
]
LIBRARIES = {
    "aiodocker": "agent/doors/docker_gate",
    "aiomqtt": "agent/doors/mqtt",
    "dbus_fast": "agent/doors/logind",
    "aiohttp.web": ("agent/doors/peer_server", "agent/doors/http_server"),
    "prometheus_client": "agent/metrics",
    "sqlite3": "agent/migration/journal",
    "cryptography": ("agent/base/pki", "agent/archive/crypt"),
    "zstandard": "agent/base/zstd",
    "uvloop": "agent/daemon",
    "typer": "agent/cli",
    "rich": "agent/cli",
    "textual": "agent/cli/top",
}
STARTS_PROCESSES = {
    "agent/base/shell.py",
    "agent/runtime/pages.py",
    "agent/runtime/restore.py",
    "agent/runtime/wake.py",
    "lab/shell.py",
    "lab/vm/guest.py",
}
"""The runtime is apart: standard library only, and what it starts must outlive the agent. So is the guest, alone on a
disk."""


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        yield from parsed(folder)


@functools.cache
def parsed(folder: str) -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@functools.cache
def imports(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return found


def floor_of(module: str) -> int | None:
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return number
    return None


def test_imports_go_down() -> None:
    wrong = []
    for path, tree in modules("agent", "protocol"):
        here = floor_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for name in imports(tree):
            there = floor_of(name)
            if here is not None and there is not None and there < here:
                wrong.append(f"{path} imports {name}")
    assert not wrong


def test_the_runtime_imports_the_standard_library_only() -> None:
    for path, tree in modules("agent/runtime"):
        foreign = [name for name in imports(tree) if name.startswith(("agent", "protocol"))]
        assert all(name.startswith("agent.runtime") for name in foreign), (path, foreign)


def test_the_contract_needs_pydantic_alone() -> None:
    allowed = {"pydantic", "pydantic_core", "protocol", *sys.stdlib_module_names}
    for path, tree in modules("protocol"):
        assert not {name.split(".")[0] for name in imports(tree)} - allowed, path


@pytest.mark.parametrize(("library", "place"), LIBRARIES.items())
def test_each_outside_library_has_one_door(library: str, place: str | tuple[str, ...]) -> None:
    others = [
        path
        for path, tree in modules("agent", "protocol")
        if any(name == library or name.startswith(library + ".") for name in imports(tree))
        and not path.startswith(place)
    ]
    assert not others


def test_only_the_shell_starts_processes() -> None:
    words = re.compile(r"\bsubprocess\.\w+\(|create_subprocess_|os\.system\(|os\.exec[lv]|posix_spawn")
    others = [
        path
        for path, _ in modules("agent", "protocol", "lab")
        if words.search((ROOT / path).read_text()) and path not in STARTS_PROCESSES
    ]
    assert not others


def test_no_file_has_outgrown_its_idea() -> None:
    long = {path: lines for path, _ in modules("agent", "protocol", "lab") if (lines := line_count(path)) > 400}
    assert not long


def line_count(path: str) -> int:
    return len((ROOT / path).read_text().splitlines())


def test_no_function_is_longer_than_a_page() -> None:
    long = [
        f"{path}: {node.name} ({length} lines)"
        for path, tree in modules("agent", "protocol", "lab")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long


def test_every_module_says_what_lives_in_it() -> None:
    silent = [path for path, tree in modules("agent", "protocol", "lab") if tree.body and not ast.get_docstring(tree)]
    assert not silent
