"""The dockerd that learns of the runtime is the right one, its file is replaced as a whole."""

import json
from pathlib import Path

import pytest

from agent.base.errors import DockerFailed, Refused
from agent.cli.registration import DaemonJson, DockerApi, find_dockerd, write_atomically

# --- finding dockerd


def test_dockerd_is_found_without_a_pid_file_among_this_hosts_processes(tmp_path: Path) -> None:
    for pid, comm, space in ((10, "dockerd", "ours"), (11, "dockerd", "theirs"), (12, "bash", "ours")):
        proc = tmp_path / "proc" / str(pid)
        (proc / "ns").mkdir(parents=True)
        (proc / "comm").write_text(f"{comm}\n")
        (proc / "cmdline").write_bytes(comm.encode() + b"\0")
        for name in ("pid", "mnt"):
            (proc / "ns" / name).symlink_to(space)
    (tmp_path / "proc/self").symlink_to("12")
    found = find_dockerd(tmp_path)
    assert found is not None
    assert found.pid == 10
    (tmp_path / "proc/11/ns/pid").unlink()
    (tmp_path / "proc/11/ns/mnt").unlink()
    (tmp_path / "proc/11/ns/pid").symlink_to("ours")
    (tmp_path / "proc/11/ns/mnt").symlink_to("ours")
    with pytest.raises(Refused, match="several dockerd"):
        find_dockerd(tmp_path)


def test_stale_pid_file_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/docker.pid").write_text("10")
    for pid, comm in ((10, "bash"), (12, "bash")):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "comm").write_text(comm)
    assert find_dockerd(tmp_path) is None


def test_dockerd_that_is_away_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DockerFailed, match="does not answer") as caught:
        DockerApi(f"unix://{tmp_path}/none.sock").get("/info")
    assert caught.value.hint


# --- files


def test_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a" / "f"
    write_atomically(file, "one")
    assert file.stat().st_mode & 0o777 == 0o644
    file.chmod(0o600)
    write_atomically(file, "two")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o600)
    assert [one.name for one in file.parent.iterdir()] == ["f"]


@pytest.mark.parametrize(("text", "indent"), [('{\n    "a": 1\n}', "    "), ('{\n\t"a": 1\n}', "\t"), ("{}", 2)])
def test_indentation_is_kept(tmp_path: Path, text: str, indent: str | int) -> None:
    (tmp_path / "f").write_text(text)
    written = DaemonJson.read(tmp_path / "f").written({"a": {"b": 1}})
    assert written == json.dumps({"a": {"b": 1}}, indent=indent) + "\n"
