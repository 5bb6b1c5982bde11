"""The campaign of accidents: its plans follow from their seed, and its judge sees what it is there to see."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab.chaos import __main__ as campaigns
from lab.chaos import inspect_host, judge, report
from lab.chaos.accidents import Struck
from lab.chaos.campaign import Seen
from lab.chaos.judge import Known, Verdict
from lab.chaos.loads import Written
from lab.chaos.plan import MOMENTS, Accident, Fault, cells, plan
from lab.chaos.recovery import spans
from lab.chaos.workload import last_number

LINES = (1, 2, 3, 4)


def test_a_plan_follows_from_seed_and_number() -> None:
    assert plan(7, 41) == plan(7, 41)
    assert str(plan(7, 41)) != str(plan(8, 41))
    assert "seed 7 run 41" in str(plan(7, 41))


def test_as_many_runs_as_there_are_cells_try_each_of_them() -> None:
    tried = {(fault.accident, fault.side, fault.moment) for run in range(len(cells())) for fault in plan(3, run).faults}
    assert tried == set(cells())
    assert {moment for _, _, moment in cells()} == set(MOMENTS)
    assert {accident for accident, _, _ in cells()} == set(Accident)


def written(*files: tuple[int, ...], token: str = "t", logged: tuple[int, ...] = LINES) -> Written:
    return Written(files or (LINES,), token, logged, 0)


@pytest.mark.parametrize("numbers", [(1, 2, 4, 5), (1, 2, 2, 3), (2, 3, 4, 5), (1, 2, 3)])
def test_a_number_that_is_missing_or_came_twice_is_a_violation(numbers: tuple[int, ...]) -> None:
    verdict = Verdict()
    judge._judge_numbers(written(numbers), Known("t", 4), verdict)
    assert verdict.violations


def test_what_is_whole_is_none() -> None:
    verdict = Verdict()
    judge._judge_numbers(written(LINES, LINES), Known("t", 4), verdict)
    judge._judge_log(written(), Known("t", 4), [], verdict)
    assert verdict.violations == []


@pytest.mark.parametrize("logged", [(1, 2, 4), (1, 2, 2, 3)])
def test_a_gap_in_the_log_is_a_violation_unless_the_accident_takes_lines(logged: tuple[int, ...]) -> None:
    verdict = Verdict()
    judge._judge_log(written(logged=logged), Known("t", 4), [], verdict)
    assert verdict.violations
    excused = Verdict()
    judge._judge_log(written(logged=logged), Known("t", 4), [struck(Accident.DOCKERD_KILLED, "b")], excused)
    assert excused.violations == []


def struck(accident: Accident, host: str, *, hit: bool = True) -> Struck:
    return Struck(Fault(accident, "source", MOMENTS[0], 0, 0, 0), host, hit, 0.0)


def test_only_an_accident_where_it_runs_excuses_that_another_process_runs() -> None:
    assert judge.excused([struck(Accident.HOST_GONE, "b")], "b", Verdict())
    assert not judge.excused([struck(Accident.HOST_GONE, "a")], "b", Verdict())
    assert not judge.excused([struck(Accident.HOST_GONE, "b", hit=False)], "b", Verdict())
    assert not judge.excused([struck(Accident.AGENT_KILLED, "b")], "b", Verdict())
    assert judge.excused([], "b", Verdict(lost=True))


def test_what_dockerd_can_load_is_left_behind_and_what_it_can_t_is_told_apart(tmp_path: Path) -> None:
    for name in ("listed", "whole", "half"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    for name in ("listed", "whole"):
        (tmp_path / name / "config.v2.json").write_text("{}")
    (tmp_path / "whole/hostconfig.json").write_text("{}")
    (tmp_path / "half/hostconfig.json").write_text("{}")
    assert inspect_host.unknown_folders(tmp_path, {"listed"}) == (["whole"], ["half"])
    assert inspect_host.unknown_folders(tmp_path / "none", set()) == ([], [])


@pytest.mark.parametrize("accident", [Accident.DOCKERD_KILLED, Accident.HOST_GONE])
def test_debris_counts_apart_where_an_accident_has_ended_dockerd(accident: Accident) -> None:
    verdict = Verdict()
    judge.judge_debris("b", ["c" * 64], [struck(accident, "b")], verdict)
    assert verdict.violations == []
    assert verdict.debris == ["dockerd's folder of cccccccccccc, which has no config.v2.json, on b"]


@pytest.mark.parametrize(
    "accidents",
    [
        [],
        [("a", True, Accident.DOCKERD_KILLED)],
        [("b", False, Accident.HOST_GONE)],
        [("b", True, Accident.AGENT_KILLED)],
    ],
    ids=["none", "elsewhere", "missed", "another's"],
)
def test_debris_without_a_killed_dockerd_is_a_violation(accidents: list[tuple[str, bool, Accident]]) -> None:
    verdict = Verdict()
    hit = [struck(accident, host, hit=hit) for host, hit, accident in accidents]
    judge.judge_debris("b", ["c" * 64], hit, verdict)
    assert verdict.debris == []
    assert "which has no config.v2.json, on b" in verdict.violations[0]


def test_debris_is_counted_in_the_record_and_shown_on_the_page() -> None:
    seen = Seen(replace(plan(1, 1)), verdict=Verdict(debris=["one", "two"]))
    parts = [report.summary([report.row(seen)], date="2026-01-02", commit="abc", recoveries=[]) for _ in range(2)]
    assert [part["debris"] for part in parts] == [2, 2]
    old = {key: value for key, value in parts[0]["each"][0].items() if key != "debris"}
    whole = report.together([*parts, parts[0] | {"each": [old]}])
    assert (whole["debris"], whole["violations"]) == (4, 0)
    page = report.markdown(whole, (), parts[0])
    assert "Debris of dockerd's own: 4." in page.split("## In the VM lab")[0]
    assert "Debris of dockerd's own: 2." in page.split("## In the VM lab")[1]
    assert "Debris of dockerd's own: 0." in report.markdown(campaign_of("cold"))


def test_a_counter_goes_on_from_the_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "count"
    assert last_number(str(file)) == 0
    file.write_text("1 t 0\n2 t 0\n3 t")
    assert last_number(str(file)) == 2


def said(second: float, message: str) -> str:
    return json.dumps({"at": f"2026-01-01T00:00:{second:06.3f}+00:00", "message": message})


def test_how_soon_an_agent_has_taken_up_what_was_open_is_read_from_its_log() -> None:
    base = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    lines = [
        said(1.0, "m-1 was frozen as source when the agent ended"),
        "no JSON, but a program's own words",
        said(1.5, "agent of a26 is up"),
        said(2.25, "m-2 was staged as target when the agent ended"),
        said(9.0, "m-3 was prepared as target when the agent ended"),
        said(9.5, "agent of a26 is up"),
    ]
    assert spans(lines, [base, base + 5, base + 20]) == [
        {"up": 1.5, "open": 2, "taken": 0.75},
        {"up": 4.5, "open": 1, "taken": -0.5},
    ]


def test_a_violation_says_how_the_same_run_came_out_since() -> None:
    bad = {"seed": 1, "run": 5, "plan": "seed 1 run 5: cancel", "violations": ["x" * 1000, *"abcde"]}
    good = bad | {"violations": []}
    again = [{"commit": "abc", "each": [good, good | {"run": 6}]}, {"commit": "def", "each": [good]}]
    said = "\n".join(report._violations([bad, good], again))
    assert "seed 1 run 5: cancel" in said
    assert "x" * 300 + "...; a; b; c; and 2 more" in said
    assert "Done again 2 times since (abc, def): none with a violation" in said
    assert "Done again" not in report._violations([bad], [])[0]
    assert report._violations([good], again) == ["No violation."]


def test_the_page_has_what_was_moved_by_pre_copy_in_a_part_of_its_own() -> None:
    lab, vm = (campaign_of(strategy) for strategy in ("cold", "precopy"))
    page = report.markdown(lab, (), vm)
    first, emulated = page.split("## In the VM lab")
    assert "asked for by: cold 1. By pre-copy, which needs another kernel than the lab's, some are [below]" in first
    assert "precopy 1: 1 runs, 0 with a violation" in emulated
    assert "| cancel | 1 | 0 |" in emulated
    assert "agent killed" not in emulated, "what hit nothing is left out"
    assert "none was" in report.markdown(lab)


def campaign_of(strategy: str) -> report.Row:
    fault = Fault(Accident.CANCEL, "source", MOMENTS[0], 0, 0, 1)
    seen = Seen(replace(plan(1, 1), strategy=strategy, faults=(fault,)), struck=[Struck(fault, "a", True, 0.0, "", "")])
    return report.summary([report.row(seen)], date="2026-01-02", commit="abc", recoveries=[])


@pytest.mark.parametrize(
    ("now", "until", "minutes"),
    [("22:50", "23:10", 20), ("23:42", "00:20", 38), ("23:11", "23:10", -1), ("00:05", "23:59", -6)],
)
def test_a_campaign_s_end_may_be_after_midnight_and_one_that_has_just_gone_by_is_over(
    now: str, until: str, minutes: float
) -> None:
    at = datetime.fromisoformat(f"2026-01-02T{now}:00+00:00")
    assert campaigns._seconds_until(until, at) == minutes * 60
