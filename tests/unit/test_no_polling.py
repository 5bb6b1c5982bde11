"""Nothing asks dockerd again and again: its events tell. What does wait by the clock is listed here, and for what."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

WAITS = {
    "agent/announcer.py": "this host's own load: /proc has no event for it",
    "agent/base/tasks.py": "tries again what has failed; what is tried is the caller's",
    "agent/check/keeper.py": "events that come in crowds, each waits for the next",
    "agent/checkpoint/dirty.py": "what is written meanwhile, for a second, once",
    "agent/checkpoint/freezer.py": "the kernel's freezer: cgroup v1 has no event for it",
    "agent/checkpoint/resume.py": "threads that are to stop for ptrace, for two seconds at most",
    "agent/checkpoint/segments.py": "files that CRIU is writing",
    "agent/daemon.py": "systemd's watchdog",
    "agent/doors/handover.py": "the runtime's fifos",
    "agent/doors/logind.py": "between two attempts at connecting",
    "agent/doors/mqtt.py": "between two attempts at connecting",
    "agent/inventory.py": "between two attempts at connecting",
    "agent/migration/choosing.py": "other moments of a running program's stacks, a few milliseconds in all",
    "agent/migration/files.py": "processes from outside that write into a frozen container's files",
    "agent/migration/kept.py": "the end of a process that has a container paused",
    "agent/migration/leaving.py": "says that it is alive; the end of a dump that was left behind",
    "agent/migration/source.py": "asks the peer",
    "agent/migration/sources.py": "says how far it is",
    "agent/migration/target.py": "a CRIU that is being resumed",
    "agent/migration/targets.py": "asks the peer",
    "agent/network/quiet.py": "the kernel's queues of sockets",
    "agent/prework/container_log.py": "a log file that dockerd is writing",
    "agent/prework/printed.py": "pipes that dockerd is emptying",
    "agent/shutdown/hibernate.py": "the end of processes from outside that it has killed",
    "agent/shutdown/host_down.py": "tells systemd that it goes on",
    "agent/shutdown/sleepers.py": "the end of CRIU, and of a program that is stopped in its place",
    "agent/strategy/dead.py": "the end of a container that CRIU keeps the kernel from telling",
    "agent/strategy/dump.py": "the end of CRIU",
    "agent/strategy/predump.py": "until CRIU has made the images of pages: it says nothing itself when it lets go",
    "agent/strategy/postcopy.py": "between two attempts at connecting",
    "agent/vault/bring.py": "asks the target; says that it is alive",
    "agent/vault/take.py": "the end of CRIU",
}
ASKS = {"list", "find", "inspect", "running_execs", "networks", "network", "volume", "images", "memory"}
"""What may be asked of the door to dockerd."""
ASKED_AGAIN = {
    "agent/vault/take.py": "the end of a container that it has just killed, for ten seconds at most",
}


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [
        (name, ast.parse(path.read_text()))
        for path in sorted((ROOT / "agent").rglob("*.py"))
        # both end when what they were started for has
        if not (name := str(path.relative_to(ROOT))).startswith(("agent/cli/", "agent/runtime/"))
    ]


def called(node: ast.AST) -> Iterator[str]:
    """Dotted names of what is called in it."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            yield ast.unparse(inner.func)


def sleeps(node: ast.AST) -> bool:
    """A sleep of no time lets others run, and waits for nothing."""
    return any(
        isinstance(inner, ast.Call)
        and last_name(inner.func).endswith("sleep")
        and not (inner.args and ast.unparse(inner.args[0]) == "0")
        for inner in ast.walk(node)
    )


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_who_waits_by_the_clock_is_listed_with_its_reason() -> None:
    assert {name for name, tree in trees() if sleeps(tree)} == set(WAITS)


def test_no_loop_that_sleeps_asks_dockerd() -> None:
    wrong = [
        f"{name}:{loop.lineno} {asked}"
        for name, tree in trees()
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While | ast.For | ast.AsyncFor) and sleeps(loop)
        for asked in called(loop)
        if "docker." in asked and asked.rpartition(".")[2] in ASKS and name not in ASKED_AGAIN
    ]
    assert not wrong
