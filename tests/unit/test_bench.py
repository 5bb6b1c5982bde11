"""The benchmark's arithmetic, its page, and its file carrier; the moves themselves are tests/e2e/test_bench.py."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lab.bench import page, plot, record
from lab.bench.figures import Figure, series, unable
from lab.bench.goals import Goal, goals
from lab.bench.record import About, Idle, Move, Record, Start
from lab.bench.rounds import parse
from lab.shell import LabError

CARRY = Path(__file__).parents[2] / "lab" / "bench" / "carry.py"


def move(system: str = "transship-cold", *, blackout: float | None = 100.0, **fields: Any) -> Move:
    given = {"engine": "docker28", "size_mib": 64, "run": 1, "load": 1.0, "blackout_ms": blackout, "total_ms": 900.0}
    given |= {"tcp_gap_ms": (blackout or 0) * 2, "connection_kept": True, "wire_bytes": 64 << 20, "cpu_s": 1.0}
    return Move(system=system, **{**given, "peak_rss_mib": 80.0, **fields})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "records"
    written: list[Record] = [
        About(at="2026-01-01T00:00:00+00:00", kernel="6", cpus=2, memory_mib=1024),
        move(),
        Start(engine="docker28", run=1, runc_ms=300, transship_ms=310, load=0.5),
        Idle(host="a28", engine="docker28", seconds=60, rss_mib=50, anonymous_mib=30, cpu_percent=0.1, load=0.5),
    ]
    for one in written:
        record.append(file, one)
    assert record.read(file) == written


def test_a_record_with_a_field_that_nobody_knows_is_no_record() -> None:
    with pytest.raises(ValidationError):
        move(colour="blue")


@pytest.mark.parametrize(
    ("values", "median", "p95"),
    [((5.0,), 5.0, 5.0), ((1.0, 9.0, 2.0, 3.0, 4.0), 3.0, 9.0), (tuple(map(float, range(1, 101))), 50.5, 95.0)],
)
def test_median_and_nearest_rank(values: tuple[float, ...], median: float, p95: float) -> None:
    assert Figure(values).median == median
    assert Figure(values).p95 == p95


def test_the_warm_up_and_failures_count_nowhere() -> None:
    runs = [move(run=0, blackout=9000), move(blackout=100), move(run=2, blackout=None, error="broke\nmore")]
    [one] = series(runs)
    figure = one.figure("blackout_ms")
    assert figure is not None
    assert figure.values == (100.0,)
    assert (one.failed, one.errors) == (1, ("broke",))


def test_of_two_variants_the_faster_one_stands_for_the_system() -> None:
    runs = [
        move("podman", engine="podman5.8", variant=each, blackout=ms) for each, ms in (("zstd", 900), ("none", 800))
    ]
    [one] = series(runs)
    assert one.variant == "none"


def test_who_could_not_move_at_all_is_named_with_the_reason() -> None:
    error = "unable: this version has no strategy postcopy"
    records = [move("transship-postcopy", run=0, error=error), move(run=0, error="once"), move()]
    assert unable(records) == {"transship-postcopy on docker28": error}


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        (Goal("", 150, 120.0, "ms"), "reached"),
        (Goal("", 150, 180.0, "ms"), "missed by 30 ms (1.20 times)"),
        (Goal("", 50, 50.0, at_least=True), "reached"),
        (Goal("", 50, 25.0, at_least=True), "missed by 25 (2.00 times)"),
        (Goal("", 50, None), "not measured"),
    ],
)
def test_a_goal_says_by_how_much_it_was_missed(goal: Goal, verdict: str) -> None:
    assert goal.verdict == verdict


def test_goals_are_ratios_of_medians() -> None:
    records: list[Record] = [
        *(move("transship-postcopy", size_mib=size, blackout=ms) for size, ms in ((64, 100), (1024, 100), (4096, 115))),
        move("podman", engine="podman5.8", size_mib=1024, blackout=6000),
        *(move(run=run, blackout=ms) for run, ms in ((1, 80), (2, 70), (3, 900))),
        move("bare", blackout=100),
        *(Start(engine="docker28", run=run, runc_ms=300, transship_ms=300 + run, load=0) for run in (1, 2, 30)),
    ]
    values = {goal.text: goal.value for goal in goals(series(records), records) if goal.value is not None}
    assert values["post-copy blackout, 4096 MiB / 64 MiB, docker28"] == pytest.approx(1.15)
    assert values["blackout at 1024 MiB, podman / transship-postcopy on docker28"] == 60
    assert values["blackout at 64 MiB, transship-cold / bare on docker28"] == pytest.approx(0.8)
    assert values["a start with transship-runtime, beyond one with runc, docker28"] == 2
    assert values["peak memory of an agent"] == 80


def test_the_page_has_every_system_and_every_plot(tmp_path: Path) -> None:
    records: list[Record] = [
        About(at="2026-01-01T00:00:00+00:00", kernel="6", cpus=2, memory_mib=1024, versions={"docker28": "Docker 28"}),
        *(move(size_mib=size, report={"freeze": 3.0}) for size in (64, 1024)),
        move("podman", engine="podman5.8", connection_kept=False),
        move("bare", workload="redis", size_mib=1024),
    ]
    document = tmp_path / "benchmarks.md"
    page.write(document, records)
    text = document.read_text()
    for expected in ("transship-cold, docker28", "podman5.8", "## redis with 1024 MiB", "Docker 28", "200 (200) *"):
        assert expected in text
    links = re.findall(r"\]\((benchmarks/.*?)\)", text)
    assert len(links) == 3
    assert all((tmp_path / link).read_text().startswith("<svg") for link in links)


def test_a_plot_of_nothing_is_nothing() -> None:
    assert plot.lines("title", "ms", {}) == ""
    assert "&lt;b&gt;" in plot.lines("<b>", "ms", {"one": {64: [5.0]}})


@pytest.mark.parametrize(("text", "expected"), [("64", (64, False)), ("redis", (1024, True)), ("redis-32", (32, True))])
def test_sizes(text: str, expected: tuple[int, bool]) -> None:
    load = parse(text)
    assert (load.size_mib, load.redis) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "redis-", "99999999"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(LabError):
        parse(text)


def test_files_are_carried_over_a_socket(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "below").mkdir(parents=True)
    (here / "below" / "large").write_bytes(b"0123456789" * 300_000)
    (here / "empty").touch(mode=0o600)
    (here / "link").symlink_to("below/large")
    with subprocess.Popen([sys.executable, str(CARRY), "receive", "0"], stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            port = receiver.stdout.readline().split()[1]
            sent = subprocess.run(
                [sys.executable, str(CARRY), "send", "127.0.0.1", port],
                input=f'[["{here}", "{there}"]]\n', capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            assert sent.stdout.split() == ["ready", "done"], sent.stderr
            assert receiver.wait(10) == 0
        finally:
            receiver.kill()
    assert (there / "below" / "large").read_bytes() == (here / "below" / "large").read_bytes()
    assert (there / "empty").stat().st_mode & 0o777 == 0o600
    assert (there / "link").readlink() == Path("below/large")
