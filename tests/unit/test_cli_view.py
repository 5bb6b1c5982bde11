"""What the command line shows: which container is meant, how a move looks while it goes on and when it has ended."""

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from agent.base.errors import Refused
from agent.cli import finding, listing, progress, timeline
from agent.cli.migrate import Outcome
from agent.cli.output import FAILED, IN_DOUBT, INTERRUPTED, NO_BROKER, OK, REFUSED, Out, duration, exit_code, size
from protocol.base import utc_now
from protocol.errors import Consequence, ErrorCode, ErrorInfo, Reason
from protocol.status import (
    ContainerStatus,
    Engine,
    HostStatus,
    MigrationReport,
    MigrationStatus,
    Part,
    Phase,
    PhaseTime,
    Round,
)

HOSTS = {name: HostStatus(host=name, online=name != "node-c") for name in ("node-a", "node-b", "node-c")}


def container(host: str, name: str, identity: str) -> ContainerStatus:
    return ContainerStatus(host=host, id=identity.ljust(64, "0"), name=name, image="busybox", state="running")


CONTAINERS = [
    container("node-a", "web", "abc1"),
    container("node-a", "twin", "abc2"),
    container("node-b", "twin", "def3"),
    container("node-b", "abc", "fff4"),
    container("node-c", "far", "fff5"),
]


def report(**more: Any) -> MigrationReport:
    return MigrationReport(
        **{
            "phases": (
                PhaseTime(phase=Phase.PLANNED, at_ms=0),
                PhaseTime(phase=Phase.COPYING, at_ms=100),
                PhaseTime(phase=Phase.FROZEN, at_ms=1100),
                PhaseTime(phase=Phase.RUNNING, at_ms=1512),
                PhaseTime(phase=Phase.DONE, at_ms=1600),
            ),
            "parts": (
                Part(name="layers", bytes=1 << 20, frozen=False, ms=1),
                Part(name="images", bytes=3 << 20, frozen=True, ms=1),
            ),
            "blackout_ms": 412.0,
            "total_ms": 1600,
            "dump_ms": 120,
            "strategy": "cold",
            "notes": ("a note [with brackets]",),
            **more,
        }
    )


def status(phase: Phase, **more: Any) -> MigrationStatus:
    now = utc_now()
    return MigrationStatus(
        **{
            "id": "m-0123456789abcdef",
            "container": "web",
            "container_id": "ab" * 32,
            "source": "node-a",
            "target": "node-b",
            "phase": phase,
            "sequence": 1,
            "started_at": now - timedelta(seconds=1),
            "at": now,
            **more,
        }
    )


def shown(thing: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# --- which container


@pytest.mark.parametrize(
    ("reference", "host", "name"),
    [("web", "node-a", "web"), ("abc1", "node-a", "web"), ("def", "node-b", "twin"), ("abc", "node-b", "abc")],
)
def test_container_is_found_by_name_or_by_the_beginning_of_its_id(reference: str, host: str, name: str) -> None:
    """A name goes before an id: `abc` is a container's name and the beginning of two others' ids."""
    found = finding.find(reference, CONTAINERS, HOSTS)
    assert (found.host, found.name) == (host, name)


@pytest.mark.parametrize(
    ("reference", "code", "message", "hint"),
    [
        (
            "wep",
            ErrorCode.NO_SUCH_CONTAINER,
            "no host has a container wep",
            "did you mean web on node-a? (node-c offline)",
        ),
        ("zzz", ErrorCode.NO_SUCH_CONTAINER, "no host has", "`transship ps` shows what there is"),
        ("twin", ErrorCode.NO_SUCH_CONTAINER, "2 containers are meant", "twin (abc200000000, running) on node-a; twin"),
        ("ff", ErrorCode.NO_SUCH_CONTAINER, "2 containers are meant", "by a longer id"),
        ("far", ErrorCode.HOST_OFFLINE, "node-c, which has far, is offline", "the agent there must run"),
    ],
)
def test_container_that_is_not_clear_is_refused(reference: str, code: ErrorCode, message: str, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        finding.find(reference, CONTAINERS, HOSTS)
    assert caught.value.code is code
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_no_containers_at_all_are_said() -> None:
    with pytest.raises(Refused) as caught:
        finding.find("web", [], {})
    assert caught.value.hint == "no host has any container"


# --- figures


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (90_000_000, "85.8 MiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("ms", "text"), [(None, "-"), (0.4, "0 ms"), (412.4, "412 ms"), (1512, "1.51 s"), (123_456, "123 s")]
)
def test_spans_of_time(ms: float | None, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s ago"), (59, "59 s ago"), (61, "1 min ago"), (90_000, "1 d ago")]
)
def test_ages(seconds: int, text: str) -> None:
    assert listing.ago(utc_now() - timedelta(seconds=seconds)) == text


# --- the picture


def test_stretches_last_until_the_next_phase() -> None:
    found = [(one.phase, one.at_ms, one.ms, one.frozen) for one in timeline.stretches(report())]
    assert found == [
        (Phase.PLANNED, 0, 100, False),
        (Phase.COPYING, 100, 1000, False),
        (Phase.FROZEN, 1100, 412, True),
        (Phase.RUNNING, 1512, 88, False),
    ]


@pytest.mark.parametrize(
    ("start", "length", "total", "text"),
    [
        (0, 100, 100, "█" * 10),
        (50, 50, 100, "     █████"),
        (0, 12.5, 100, "█▎"),
        (0, 0.001, 100, "▏"),
        (100, 0, 100, "         ▏"),
        (0, 1, 0, ""),
    ],
)
def test_bars_are_to_scale_and_never_vanish(start: float, length: float, total: float, text: str) -> None:
    assert timeline.bar(start, length, total, 10) == text


def test_bar_needs_room() -> None:
    assert timeline.bar(0, 1, 1, 0) == ""


@pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
def test_picture_fits_its_terminal(width: int) -> None:
    text = shown(timeline.picture(report(), width), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 60:
        assert "frozen 1.10 s 412 ms" in " ".join(text.split())
        assert "ms blackout" in text
        assert "carried 1.0 MiB while it ran, 3.0 MiB while it was frozen" in text
        assert "note: a note [with brackets]" in text


def test_picture_of_a_move_that_never_froze_has_no_blackout() -> None:
    text = shown(timeline.picture(report(blackout_ms=None, parts=(), dump_ms=None, strategy=""), 100))
    assert "blackout" not in text


def test_digits_are_three_lines_high_and_all_known() -> None:
    assert len(timeline.digits("0123456789.").plain.splitlines()) == 3


def test_long_blackout_is_in_seconds() -> None:
    assert "s blackout" in shown(timeline.picture(report(blackout_ms=12_345.0), 100))


# --- while it goes on


def test_lines_for_a_log_file_are_one_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    view = progress.view(Out())
    assert isinstance(view, progress.LineView)
    view.begun("web", "node-a", "node-b")
    view.accepted("m-1")
    for _ in range(3):
        view.changed(status(Phase.COPYING, bytes_sent=1 << 20))
    view.ended(report(), moved=True)
    view.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["web: node-a -> node-b", "accepted as m-1"]
    assert lines[2] == "   1.000 s  copying: image and files go over while the container runs, 1.0 MiB sent"
    assert lines[3:6] == [
        "web: node-a -> node-b: done",
        "phases: planned 100 ms, copying 1.00 s, frozen 412 ms, running 88 ms",
        "blackout: 412 ms",
    ]


def live() -> tuple[progress.LiveView, Console]:
    out = Out()
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    out.__dict__["console"] = console
    view = progress.view(out)
    assert isinstance(view, progress.LiveView)
    return view, console


def test_rounds_of_pre_copy_are_told_as_they_come_and_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = tuple(
        Round(
            number=number, bytes=64 << 20, file_bytes=size, ms=400, frozen_ms=12.5, left_bytes=2 << 20, rate=1e8,
            predicted_ms=420, throttled=throttled,
        )
        for number, size, throttled in ((1, 0, 0), (2, 3 << 20, 20))
    )  # fmt: skip
    first, second = [timeline.of_round(one) for one in rounds]
    assert "files" not in first
    assert "and 3.0 MiB of files" in second
    assert "slowed down by 20 %" in second
    view = progress.LineView(Out())
    view.begun("web", "node-a", "node-b")
    for count in (0, 1, 2, 2):
        view.changed(status(Phase.COPYING, rounds=rounds[:count]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if "round" in line] == [first, second]
    assert first in timeline.plain(report(rounds=rounds))


def test_live_view_shows_the_phases_and_what_is_sent() -> None:
    view, console = live()
    view.begun("web", "node-a", "node-b")
    view.accepted("m-1")
    assert "planned" in shown(view._render())
    view.changed(status(Phase.PLANNED))
    view.changed(status(Phase.COPYING, bytes_sent=50, bytes_total=100, rate=10.0, eta_s=5.0, part="layers"))
    text = shown(view._render())
    assert "✔  planned" in text
    assert "copying" in text
    assert "50 B of 100 B   10 B/s   5 s left   image" in text
    view.ended(report(), moved=True)
    view.close()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✔ web  node-a ━━▶ node-b   m-1" in said
    assert "blackout" in said


@pytest.mark.parametrize(
    ("part", "words"),
    [("root:0", "writable layer"), ("volume:my:data:1", "volume my:data"), ("pages", "memory"), ("log", "log")],
)
def test_what_is_being_sent_is_said_in_words(part: str, words: str) -> None:
    assert progress.called(part) == words


def test_live_view_of_a_failure_has_no_check_mark() -> None:
    view, console = live()
    view.begun("web", "node-a", "node-b")
    view.ended(None, moved=False)
    assert "✘ web" in console.file.getvalue()  # type: ignore[attr-defined]


# --- errors and exit codes


@pytest.mark.parametrize(
    ("code", "consequence", "number"),
    [
        (ErrorCode.BROKER_UNAVAILABLE, Consequence.UNTOUCHED, NO_BROKER),
        (ErrorCode.NO_SPACE, Consequence.UNTOUCHED, REFUSED),
        (ErrorCode.DUMP_FAILED, Consequence.TAKEN_BACK, FAILED),
        (ErrorCode.NO_ANSWER, Consequence.IN_DOUBT, IN_DOUBT),
        (ErrorCode.STRANDED, Consequence.STRANDED, IN_DOUBT),
    ],
)
def test_exit_codes_of_errors(code: ErrorCode, consequence: Consequence, number: int) -> None:
    assert exit_code(ErrorInfo(code=code, message="x", consequence=consequence)) == number


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        (Phase.DONE, OK),
        (Phase.ROLLED_BACK, FAILED),
        (Phase.REFUSED, REFUSED),
        (Phase.STRANDED, IN_DOUBT),
        (Phase.COMMITTED, IN_DOUBT),
        (None, IN_DOUBT),
    ],
)
def test_exit_codes_of_ends_that_nobody_explains(phase: Phase | None, number: int) -> None:
    assert Outcome(phase, None, None).code == number


def test_error_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out()
    out.moving = True
    error = ErrorInfo(
        code=ErrorCode.NOT_MIGRATABLE,
        message="web can't be moved: [2 reasons]",
        hint="see [bold]below[/]",
        reasons=(
            Reason(code=ErrorCode.NOT_MIGRATABLE, message="a terminal", hint="without -t"),
            Reason(code=ErrorCode.NO_SPACE, message="no space"),
        ),
        detail=tuple(f"line {number}" for number in range(30)),
    )
    assert out.error(error) == REFUSED
    said = capsys.readouterr().err
    assert "✘ web can't be moved: [2 reasons]" in said
    assert "  • a terminal\n    without -t\n  • no space\n" in said
    assert "line 29" in said
    assert "line 5\n" not in said
    assert "nothing was touched" in said
    assert "hint: see [bold]below[/]" in said


def test_error_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    error = ErrorInfo(code=ErrorCode.BUSY, message="busy")
    assert Out(as_json=True).error(error) == REFUSED
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert captured.err == ""
    assert (said["ok"], said["exit_code"]) == (False, REFUSED)
    assert ErrorInfo.model_validate(said["error"]) == error


def test_interrupt_tells_what_it_leaves_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert Out().interrupted() == INTERRUPTED
    out = Out(as_json=True)
    out.when_interrupted = lambda: {"migration": "m-1", "message": "still moving"}
    assert out.interrupted() == INTERRUPTED
    assert json.loads(capsys.readouterr().out)["migration"] == "m-1"


def test_host_that_lacks_something_says_so() -> None:
    host = HostStatus(host="a", online=True, engine=Engine(docker="28", criu=""))
    assert listing._lacks(host) == ["no CRIU", "runtime not registered: `transship setup`"]
    assert listing._lacks(HostStatus(host="a", online=True)) == ["dockerd does not answer"]
