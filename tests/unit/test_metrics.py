"""Figures for Prometheus: counted once each, served read-only; what is shipped for Grafana names none that is not."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from agent.base.config import Http
from agent.doors.http_server import HttpServer
from agent.metrics import Looks, Metrics
from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.run import Run
from protocol.errors import ErrorInfo
from protocol.status import Phase

SHIPPED = Path(__file__).parents[2] / "systemd"
RULES = SHIPPED / "prometheus-alerts.yml"
GRAFANA = SHIPPED / "grafana-dashboard.json"
TO_THE_END = (
    *(Phase.RESERVED, Phase.COPYING, Phase.FROZEN, Phase.PREPARED),
    *(Phase.COMMITTED, Phase.RUNNING, Phase.DONE),
)


def metrics(**looks: Any) -> Metrics:
    usual: dict[str, Any] = {
        "running": lambda: {"source": 2, "target": 1},
        "in_doubt": lambda: {"source": 0, "target": 1},
        "containers": lambda: {"running": 3, "exited": 1},
        "docker": lambda: True,
        "broker": lambda: False,
        "dropped": lambda: 7,
        "received": lambda: 512,
    }
    return Metrics("host-a", 4, Looks(**{**usual, **looks}))


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.open()
    yield journal
    await journal.close()


def run_of(journal: Journal, figures: Metrics, strategy: str) -> Run:
    async def changed(run: Run) -> None:
        figures.changed(run)

    run = Run(journal, Run.entry("m-0123456789abcdef", Role.SOURCE, "web", "host-b", {}), changed=changed)
    run.strategy = strategy
    return run


def value(figures: Metrics, name: str, **labels: str) -> float | None:
    return figures.registry.get_sample_value(name, labels)


async def test_a_move_is_counted_once_with_its_phases_blackout_and_bytes(journal: Journal) -> None:
    figures = metrics()
    journal.on_write = figures.journal_written
    run = run_of(journal, figures, "cold")
    await run.record_beginning()
    for phase in TO_THE_END:
        if phase is Phase.COPYING:
            run.sent(1000)
            run.compressed.raw, run.compressed.compressed = 1000, 250
            await run.publish()
            run.compressed.raw, run.compressed.compressed = 1200, 300  # a chunk of it does not count as sent yet
            await run.publish()
            run.sent(234)
        if phase is Phase.RUNNING:
            run.figures["blackout_ms"] = 180.0
        await run.enter(phase)
        await run.publish()  # what is said twice counts once
    assert value(figures, "transship_migrations_total", result="done", strategy="cold") == 1
    assert value(figures, "transship_migrations_total", result="rolled-back", strategy="cold") == 0
    assert value(figures, "transship_blackout_seconds_count", strategy="cold") == 1
    assert value(figures, "transship_blackout_seconds_bucket", strategy="cold", le="0.15") == 0
    assert value(figures, "transship_blackout_seconds_bucket", strategy="cold", le="0.2") == 1
    assert value(figures, "transship_sent_bytes_total") == 334
    assert value(figures, "transship_migration_seconds_count", strategy="cold") == 1
    phases = {Phase.PLANNED, *TO_THE_END} - {Phase.DONE}
    assert {
        each: value(figures, "transship_migration_phase_seconds_count", phase=each) for each in phases
    } == dict.fromkeys(phases, 1)
    assert value(figures, "transship_journal_write_seconds_count") == 1 + len(TO_THE_END)
    assert value(figures, "transship_journal_write_failures_total") == 0


@pytest.mark.parametrize(
    ("phases", "failure", "result"),
    [
        ((Phase.REFUSED,), True, "refused"),
        ((Phase.RESERVED, Phase.COPYING, Phase.STRANDED, Phase.ROLLED_BACK), True, "rolled-back"),
        (TO_THE_END, True, "lost"),
    ],
)
async def test_how_it_has_ended_is_told_apart(
    journal: Journal, phases: tuple[Phase, ...], failure: bool, result: str
) -> None:
    figures = metrics()
    run = run_of(journal, figures, "postcopy")
    if failure:
        run.failure = ErrorInfo.model_validate({"code": "internal", "message": "it was not to be"})
    for phase in phases:
        await run.enter(phase)
    counted = {
        each: value(figures, "transship_migrations_total", result=each, strategy="postcopy")
        for each in ("done", "refused", "rolled-back", "lost")
    }
    assert counted == {**dict.fromkeys(counted, 0), result: 1}


async def test_a_journal_that_can_not_be_written_counts(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = metrics()
    journal.on_write = figures.journal_written
    run = run_of(journal, figures, "cold")

    def full(entry: object, with_next: bool) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(journal, "_put", full)
    with pytest.raises(OSError, match="no space"):
        await run.record_beginning()
    assert value(figures, "transship_journal_write_failures_total") == 1
    assert value(figures, "transship_journal_write_seconds_count") == 0


async def test_the_page_is_served_to_readers_only_and_not_where_no_port_is_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = HttpServer(Http(port=port))
    server.serve("/metrics", metrics().page)
    await server.start()
    try:
        text, kind = await asyncio.to_thread(fetched, port, "/metrics")
        assert kind.startswith("text/plain; version=0.0.4")
        for line in (
            'transship_migrations_running{role="source"} 2.0',
            'transship_migrations_in_doubt{role="target"} 1.0',
            'transship_containers{state="exited"} 1.0',
            "transship_docker_connected 1.0",
            "transship_broker_connected 0.0",
            "transship_broker_dropped_total 7.0",
            "transship_received_bytes_total 512.0",
            "transship_migrations_limit 4.0",
        ):
            assert f"\n{line}\n" in text
        for path, method in (
            ("/", "GET"),
            ("/metrics/../etc/passwd", "GET"),
            ("/metrics", "POST"),
            ("/metrics", "PUT"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(fetched, port, path, method)
            with refused.value:
                assert refused.value.code == (404 if method == "GET" else 405)
    finally:
        await server.close()
    silent = HttpServer(Http())
    await silent.start()
    await silent.close()


def fetched(port: int, path: str, method: str = "GET") -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


# --- what is shipped for Grafana and Prometheus


def names() -> set[str]:
    """Every series that an agent can give, as a query would name it."""
    found = set()
    for family in metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def unknown(query: str) -> set[str]:
    """Of a query that Prometheus can read, the figures that no agent has; Grafana fills its variables in before."""
    promql_parser.parse(query.replace("$__rate_interval", "1m").replace("$host", ".*"))
    said = set(re.findall(r"\b(?:transship|process)_\w+", query))
    assert said or query.startswith("up{"), f"it asks for nothing of ours: {query}"
    return said - names()


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_asks_for_figures_that_exist_and_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 10
    documented = (SHIPPED.parent / "docs/metrics.md").read_text()
    for rule in rules():
        assert not unknown(rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= set(rule["annotations"])
        assert rule["alert"] in documented


def test_every_panel_asks_for_figures_that_exist() -> None:
    board = json.loads(GRAFANA.read_text())
    for panel in board["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            assert not unknown(target["expr"]), panel["title"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            [asked] = re.findall(r"label_values\((.*), *\w+\)", variable["query"])
            assert not unknown(asked)


@pytest.mark.parametrize("query", ["rate(transship_sent_bytes_total[5m)", "sum(transship_agent_info", "increase(up)"])
def test_a_query_that_prometheus_does_not_take_is_found(query: str) -> None:
    with pytest.raises(Exception, match=r"(?i)parse|unclosed|unexpected|expected"):
        unknown(query)


def test_every_figure_is_documented() -> None:
    text = (SHIPPED.parent / "docs/metrics.md").read_text()
    ours = {name for name in names() if name.startswith("transship_")}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    assert {name for name in bare if f"`{name}" not in text} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is in Debian's package prometheus")
def test_prometheus_takes_the_alert_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
