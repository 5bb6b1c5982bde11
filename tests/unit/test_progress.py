"""How far a move is: what has been sent, what is still to come, and how long that takes."""

from pathlib import Path

from agent.migration.journal import Journal
from agent.migration.machine import Role
from agent.migration.report import status
from agent.migration.run import Run

MIB = 1 << 20


def run_of(folder: Path) -> Run:
    record = {"container_id": "ab" * 32}
    return Run(
        Journal(folder / "journal.sqlite"), Run.entry("m-0123456789abcdef", Role.SOURCE, "web", "host-b", record)
    )


def test_what_is_to_come_is_known_better_with_each_stage(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.sent(1)
    assert run.bytes_total is None, "nothing is guessed before anything is known"
    run.expects(10 * MIB, then=90 * MIB)
    run.sent(4 * MIB)
    assert run.bytes_total == 1 + 100 * MIB
    run.expects(90 * MIB)  # there was less of the first than thought
    assert run.bytes_total == 1 + 94 * MIB


def test_it_never_says_that_less_is_to_come_than_is_known_to_follow(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.expects(10, then=90)
    for _ in range(5):
        run.sent(10)
    assert run.bytes_total == 50 + 90, "more files than were thought, and the memory after them"
    run.expects(90)
    run.sent(95)
    assert run.bytes_total == run.bytes_sent


def test_the_time_that_is_left_follows_from_the_rate(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.expects(100 * MIB)
    assert status(run, "host-a", 1).eta_s is None
    run._marks = [(0.0, 0), (1.0, 25 * MIB)]
    run.bytes_sent = 25 * MIB
    said = status(run, "host-a", 2)
    assert (said.bytes_total, said.rate, said.eta_s) == (100 * MIB, 25 * MIB, 3.0)
