"""What the shell promises: a child never outlives its caller unseen, output never blocks it, secrets never show."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.base import shell as shell_module
from agent.base.errors import CommandFailed, StepTimeout
from agent.base.shell import Shell, printable

Run = Callable[[Awaitable[Any]], Any]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on either event loop; the agent uses uvloop, tests and tools use asyncio's."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 30))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def read_pid(file: Path) -> int:
    return int(file.read_text()) if file.exists() and file.read_text().endswith("\n") else 0


def test_command_runs_and_its_output_comes_back(run: Run) -> None:
    done = run(Shell().run("sh", "-c", "echo out; echo err >&2"))
    assert (done.code, done.stdout, done.stderr_tail) == (0, "out\n", ("err",))


def test_code_other_than_zero_raises_with_the_end_of_stderr(run: Run) -> None:
    with pytest.raises(CommandFailed) as caught:
        run(Shell().run("sh", "-c", "for i in $(seq 200); do echo line $i >&2; done; exit 3", label="count"))
    assert caught.value.message == "count ended with code 3: line 200"
    assert caught.value.detail[1:] == tuple(f"line {number}" for number in range(151, 201))


def test_code_other_than_zero_can_be_asked_for(run: Run) -> None:
    assert run(Shell().run("false", check=False)).code == 1


def test_signal_that_ended_it_is_named(run: Run) -> None:
    with pytest.raises(CommandFailed, match="was ended by SIGKILL"):
        run(Shell().run("sh", "-c", "kill -9 $$"))


def test_missing_program_is_said_with_a_hint(run: Run) -> None:
    with pytest.raises(CommandFailed) as caught:
        run(Shell().run("no-such-program-here"))
    assert caught.value.message == "no-such-program-here is not installed"
    assert caught.value.hint


def test_missing_folder_is_not_taken_for_a_missing_program(run: Run) -> None:
    with pytest.raises(CommandFailed, match="no folder /no/such/folder"):
        run(Shell().run("true", cwd="/no/such/folder"))


def test_program_that_may_not_be_started_is_a_failed_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a program")
    with pytest.raises(CommandFailed, match="can't be started"):
        run(Shell().run(str(tmp_path / "notes")))


def test_long_line_without_end_does_not_block_the_command(run: Run) -> None:
    done = run(Shell().run("sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2"))
    assert done.code == 0
    assert 0 < sum(map(len, done.stderr_tail)) <= shell_module.LINE_BYTES * shell_module.TAIL_LINES


def test_input_larger_than_every_buffer_goes_through(run: Run) -> None:
    data = b"x" * (4 << 20)
    assert len(run(Shell().run("cat", stdin=data)).stdout) == len(data)


def test_command_may_leave_its_input_unread(run: Run) -> None:
    assert run(Shell().run("true", stdin=b"x" * (1 << 20))).code == 0


def test_empty_input_is_an_end_of_file(run: Run) -> None:
    assert run(Shell().run("cat", stdin=b"")).stdout == ""


def test_child_left_behind_with_the_pipes_open_does_not_hold_up_the_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.base.shell.DRAIN_SECONDS", 0.2)
    began = time.monotonic()
    done = run(Shell().run("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; echo said"))
    os.kill(read_pid(tmp_path / "pid"), signal.SIGKILL)
    assert done.stdout == "said\n"
    assert time.monotonic() - began < 10


def test_environment_is_added_to(run: Run) -> None:
    done = run(Shell().run("sh", "-c", "echo $COLOUR $PATH", env={"COLOUR": "red"}))
    assert done.stdout.split() == ["red", os.environ["PATH"]]


def test_timeout_ends_the_whole_group_and_raises(run: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(StepTimeout) as caught:
        run(Shell().run("sh", "-c", f"sleep 60 & echo $! > {pid}; wait", label="wait", timeout=0.3))
    assert caught.value.message == "wait took longer than 0.3 s"
    run(until(lambda: not alive(read_pid(pid))))


def test_child_deaf_to_term_is_killed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "GRACE_SECONDS", 0.1)
    pid = tmp_path / "pid"
    with pytest.raises(StepTimeout):
        run(Shell().run("sh", "-c", f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.05; done", timeout=0.3))
    assert not alive(read_pid(pid))


def test_cancel_ends_and_reaps_the_child_and_comes_out(run: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    async def story() -> None:
        task = asyncio.create_task(Shell().run("sh", "-c", f"echo $$ > {pid}; exec sleep 60"))
        await until(lambda: read_pid(pid) > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())
    assert not Path(f"/proc/{read_pid(pid)}").exists()


@pytest.mark.parametrize("killable", [True, False])
def test_cancel_while_it_is_being_started_loses_no_child(run: Run, tmp_path: Path, killable: bool) -> None:
    """Between the fork and the moment that asyncio knows of the child, a cancel must not let go of it."""
    out = tmp_path / "out"
    script = f"trap 'echo ended > {out}; exit' TERM; sleep 0.2; echo whole > {out}"

    async def story(turns: int) -> bool:
        out.unlink(missing_ok=True)
        task = asyncio.create_task(Shell().run("sh", "-c", script, killable=killable))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return out.exists() or killable

    assert run(story(0)) == killable  # never begun
    assert all(run(story(turns)) for turns in range(1, 8))


def test_started_command_is_ended_if_its_start_is_cancelled(run: Run) -> None:
    async def story() -> None:
        task = asyncio.create_task(Shell().start("sleep", "60"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "sleep" not in commands()

    def commands() -> list[str]:
        """Of this process's children, whichever of its threads started them; one that ends meanwhile is none."""
        found = []
        for children in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children.read_text().split()]
        return found

    run(story())


def test_second_cancel_still_waits_until_the_child_is_reaped(run: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"trap 'sleep 0.3; exit 0' TERM; echo $$ > {pid}; while :; do sleep 0.05; done"

    async def story() -> None:
        task = asyncio.create_task(Shell().run("sh", "-c", script))
        await until(lambda: read_pid(pid) > 0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not Path(f"/proc/{read_pid(pid)}").exists()
        assert not [name for name in (t.get_name() for t in asyncio.all_tasks()) if name.startswith(("end", "wait"))]

    run(story())


def test_unkillable_child_is_waited_for_and_then_the_cancel_comes_out(run: Run, tmp_path: Path) -> None:
    pid, go, out = tmp_path / "pid", tmp_path / "go", tmp_path / "out"
    script = f"echo $$ > {pid}; while [ ! -e {go} ]; do sleep 0.02; done; echo whole > {out}"

    async def story() -> None:
        task = asyncio.create_task(Shell().run("sh", "-c", script, killable=False))
        await until(lambda: read_pid(pid) > 0)
        for _ in range(3):
            task.cancel()
            done, _pending = await asyncio.wait({task}, timeout=0.05)
            assert not done
        go.touch()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())
    assert out.read_text() == "whole\n"


def test_unkillable_child_past_its_deadline_is_waited_for_and_then_the_timeout_comes_out(
    run: Run, tmp_path: Path
) -> None:
    with pytest.raises(StepTimeout):
        run(Shell().run("sh", "-c", f"sleep 0.4; echo whole > {tmp_path}/out", killable=False, timeout=0.1))
    assert (tmp_path / "out").read_text() == "whole\n"


def test_cancel_while_a_late_child_is_ended_is_not_lost_in_the_timeout(run: Run, tmp_path: Path) -> None:
    pid, go = tmp_path / "pid", tmp_path / "go"
    script = f"echo $$ > {pid}; while [ ! -e {go} ]; do sleep 0.02; done"

    async def story() -> None:
        task = asyncio.create_task(Shell().run("sh", "-c", script, killable=False, timeout=0.1))
        done, _pending = await asyncio.wait({task}, timeout=0.5)
        assert not done
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)
        go.touch()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())


def test_timeout_around_it_is_a_timeout_and_the_child_is_gone(run: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await Shell().run("sh", "-c", f"echo $$ > {pid}; exec sleep 60")
        assert not Path(f"/proc/{read_pid(pid)}").exists()

    run(story())


def test_started_command_can_be_waited_for_after_a_cancelled_wait(run: Run, tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def story() -> None:
        running = await Shell().start("sh", "-c", f"echo early; while [ ! -e {go} ]; do sleep 0.02; done; echo late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await running.wait()
        go.touch()
        done = await running.wait()
        assert done.stdout == "early\nlate\n"
        await running.end()

    run(story())


def test_ending_an_ended_command_does_nothing(run: Run) -> None:
    async def story() -> None:
        running = await Shell().start("true")
        await running.wait()
        await running.end()
        await running.end()

    run(story())


def test_command_is_printed_before_it_runs_and_its_end_after(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG - 1, "agent.wire")
    run(Shell().run("sh", "-c", "echo 'a b' >&2", label="say"))
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == """+ sh -c 'echo '"'"'a b'"'"' >&2'"""
    assert second == "say> a b"
    assert third.startswith("= 0 in ")


def test_secret_is_starred_in_log_and_error(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG - 1, "agent.wire")
    with pytest.raises(CommandFailed) as caught:
        run(Shell().run("false", "s3cret", "--password=s3cret", hide=("s3cret",)))
    assert caught.value.detail == ("false *** --password=***",)
    assert "s3cret" not in caplog.text
    with pytest.raises(StepTimeout) as late:
        run(Shell().run("sh", "-c", "sleep 60", "s3cret", timeout=0.1, hide=("s3cret",)))
    assert late.value.detail == ("sh -c 'sleep 60' ***",)


def test_printable_can_be_pasted_into_a_shell() -> None:
    assert printable(["echo", "it's", "a b"]) == """echo 'it'"'"'s' 'a b'"""
