"""Lines of CRIU as it writes them, and what an operator is told of them."""

from pathlib import Path

import pytest

from agent.base.errors import CommandFailed
from agent.checkpoint import diagnosis, logs

LINES = {
    "(00.021) Error (criu/sk-unix.c:836): unix: Can't dump half of stream unix connection.": "UNIX connection",
    "(00.013) Error (criu/fsnotify.c:284): fsnotify: Can't dump that handle": "watches files",
    "(0.1) Error (criu/files-reg.c:1024): Can't dump ghost file /tmp/x of 2097152 size": "was deleted",
    "(0.1) Error (criu/files-reg.c:1159): Can't link remap to /x: Invalid cross-device link": "mounted over it",
    "(00.010) Error (criu/file-lock.c:110): Some file locks are hold by dumping tasks!": "locks",
    "(00.009) Error (criu/tty.c:1964): tty: Found dangling tty with sid 1 pgid 1 (pts) on peer fd 0.": "terminal",
    "(00.014) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using": "TCP connections",
    "(00.052) Error (criu/files-reg.c:2174): File data/file has bad size 9 (expect 5)": "a file that it has open",
    "(00.007) Error (criu/sockets.c:148): sockets: Can't get 1:16 opt: Protocol not available": "too old",
    "(00.001) Error (criu/cr-dump.c:1781): Timeout reached. Try to interrupt: 0": "halt",
    "(00.3) Error (criu/util.c:628): Can't write: No space left on device": "not enough memory",
    "(00.02) Error (criu/proc_parse.c:497): Can't dump anon_inode:[io_uring]": "io_uring",
    "(0.2) Error (criu/sk-inet.c:1): inet: Can't bind socket (id 5): Cannot assign requested address": "an address",
}


@pytest.mark.parametrize(("line", "meaning"), LINES.items())
def test_a_known_line_is_explained(line: str, meaning: str) -> None:
    cause = diagnosis.cause_of(["(00.000) some harmless line", line])
    assert cause is not None
    assert meaning in cause.meaning
    assert cause.remedy


def test_a_task_that_the_kernel_has_killed_is_the_cause_and_not_what_follows_from_it() -> None:
    cause = diagnosis.cause_of(
        [
            "(00.499094) Error (criu/cr-restore.c:1269): 479 killed by signal 9: Killed",
            "(00.499478) Error (criu/cr-restore.c:2331): Restoring FAILED.",
            "(00.501161) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file or directory",
        ]
    )
    assert cause is not None
    assert "memory limit" in cause.meaning
    assert "docker update" in cause.remedy


def test_an_unknown_line_is_not_guessed_at() -> None:
    assert diagnosis.cause_of(["(00.02) Error (criu/strange.c:1): never seen before"]) is None


def test_the_error_has_criu_s_lines_the_cause_and_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FAILED", tmp_path / "failed")
    log = tmp_path / "dump.log"
    before = [f"(00.00{number}) line {number}" for number in range(9)]
    log.write_text("\n".join([*before, next(iter(LINES)), "(00.03) Unlock network"]) + "\n")
    error = diagnosis.dump_failed(log, "m-1-dump.log", "node-a", CommandFailed("dump ended with code 1"))
    assert error.detail == (*before[-5:], next(iter(LINES)))
    assert "UNIX connection" in error.message
    assert str(tmp_path / "failed" / "m-1-dump.log") in error.hint
    assert "docker.sock" in error.message


def test_a_failure_before_criu_has_said_anything_is_runc_s(tmp_path: Path) -> None:
    error = diagnosis.dump_failed(
        tmp_path / "none", "x", "node-a", CommandFailed("dump ended", detail=("runc: no such container",))
    )
    assert error.detail == ("runc: no such container",)
    assert error.message == "CRIU could not dump the container"
