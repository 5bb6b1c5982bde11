"""`transship setup` on a host below a temporary folder, with a dockerd that only reloads."""

import http.server
import json
import shlex
import signal
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.base import config
from agent.base.errors import DockerFailed, Refused
from agent.cli import registration, setup
from agent.cli.output import OK, Out
from agent.cli.registration import DaemonJson, DockerApi, Dockerd, check_flags, find_dockerd, write_atomically
from agent.cli.setup import Places
from protocol.errors import ErrorCode

ROOT = Path(__file__).parents[2]


class FakeDockerd:
    """Answers /info and /containers on a socket; reads its file when it is told to, as dockerd does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pid = 4242
        self.file = root / "etc/docker/daemon.json"
        self.socket = root / "run/docker.sock"
        self.listed: dict[str, Any] = {"runc": {"path": "runc"}}
        self.containers: dict[str, str] = {}
        self.deaf = False
        self.reloads = 0
        self.flags = ["--config-file", str(self.file)]

    def start(self) -> None:
        proc = self.root / "proc" / str(self.pid)
        proc.mkdir(parents=True)
        (proc / "comm").write_text("dockerd\n")
        (proc / "cmdline").write_bytes(b"\0".join(word.encode() for word in ["/usr/bin/dockerd", *self.flags]) + b"\0")
        (self.root / "run/docker.pid").write_text(f"{self.pid}")

    def reload(self) -> None:
        """A key that is not in the file keeps its value: that is what dockerd does."""
        self.reloads += 1
        content = json.loads(self.file.read_text()) if self.file.exists() else {}
        if not self.deaf and "runtimes" in content:
            self.listed = {"runc": {"path": "runc"}, **content["runtimes"]}

    def answer(self, path: str) -> Any:
        if path == "/info":
            return {"Runtimes": self.listed}
        if path.startswith("/containers/json"):
            return [{"Id": name} for name in self.containers]
        name = path.split("/")[2]
        return {"Name": f"/{name}", "HostConfig": {"Runtime": self.containers[name]}}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDockerd]:
    for folder in ("run", "proc/self", "etc/docker"):
        (tmp_path / folder).mkdir(parents=True)
    fake = FakeDockerd(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(fake.answer(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "socket"

        def log_message(self, *args: object) -> None:
            pass

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (fake.pid, signal.SIGHUP)
        fake.reload()

    monkeypatch.setattr("agent.cli.registration.os.kill", kill)
    monkeypatch.setattr(registration, "RELOAD_SECONDS", 0.2)
    server = _Server(str(fake.socket), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def places(dockerd: FakeDockerd, tmp_path: Path) -> Places:
    return Places(
        root=tmp_path,
        settings=tmp_path / "etc/transship/agent.toml",
        daemon_json=dockerd.file,
        docker=f"unix://{dockerd.socket}",
    )


def runtimes(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())["runtimes"])


# --- install


def test_install_on_a_fresh_host(places: Places, dockerd: FakeDockerd, capsys: pytest.CaptureFixture[str]) -> None:
    dockerd.start()
    assert setup.install(Out(as_json=True), places) == OK
    assert runtimes(places.daemon_json) == {"transship": {"path": str(places.launcher)}}
    assert dockerd.listed["transship"] == {"path": str(places.launcher)}
    assert places.launcher.stat().st_mode & 0o7777 == 0o755
    assert {folder: folder.stat().st_mode & 0o777 for folder in places.folders} == places.folders
    assert config.load(places.settings).broker.host == "localhost"
    assert places.settings.stat().st_mode & 0o777 == 0o600
    assert not places.unit.exists()
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert len(said["changed"]) == 6


def test_second_install_changes_nothing(
    places: Places, dockerd: FakeDockerd, capsys: pytest.CaptureFixture[str]
) -> None:
    dockerd.start()
    setup.install(Out(), places)
    places.settings.write_text("# mine\n")
    before = {file: file.stat().st_mtime_ns for file in places.root.rglob("*") if file.is_file()}
    capsys.readouterr()
    setup.install(Out(as_json=True), places)
    assert json.loads(capsys.readouterr().out)["changed"] == []
    assert {file: file.stat().st_mtime_ns for file in places.root.rglob("*") if file.is_file()} == before
    assert dockerd.reloads == 1


def test_launcher_calls_this_interpreter_and_this_package(places: Places, dockerd: FakeDockerd) -> None:
    setup.install(Out(), places)
    text = places.launcher.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "@" not in text.replace('"$@"', "")
    assert f"exec {shlex.quote(sys.executable)} -I -S {ROOT}/agent/runtime/restore.py" in text


def test_launcher_of_another_installation_is_replaced(places: Places, dockerd: FakeDockerd) -> None:
    places.launcher.parent.mkdir(parents=True)
    places.launcher.write_text("old")
    setup.install(Out(), places)
    assert places.launcher.read_text() == setup.launcher()


def test_everything_else_in_daemon_json_stays_as_it_is(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    text = '{\n\t"storage-driver": "overlay2",\n\t"runtimes": {"kata": {"path": "/k"}},\n\t"labels": ["grün"]\n}'
    places.daemon_json.write_text(text)
    places.daemon_json.chmod(0o640)
    setup.install(Out(), places)
    content = json.loads(places.daemon_json.read_text())
    assert list(content) == ["storage-driver", "labels", "runtimes"] or list(content) == [
        "storage-driver",
        "runtimes",
        "labels",
    ]
    assert content["runtimes"]["kata"] == {"path": "/k"}
    assert '\n\t"labels": [\n\t\t"grün"\n\t]' in places.daemon_json.read_text()
    assert places.daemon_json.stat().st_mode & 0o777 == 0o640
    assert places.daemon_json.with_name("daemon.json.before-transship").read_text() == text


def test_runtime_of_that_name_elsewhere_is_pointed_here(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    places.daemon_json.write_text('{"runtimes": {"transship": {"path": "/old"}}}')
    dockerd.reload()
    setup.install(Out(), places)
    assert dockerd.listed["transship"] == {"path": str(places.launcher)}


def test_registered_runtime_that_dockerd_has_not_read_yet_is_reloaded(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    places.daemon_json.write_text(json.dumps({"runtimes": {"transship": {"path": str(places.launcher)}}}))
    setup.install(Out(), places)
    assert dockerd.reloads == 1
    assert "transship" in dockerd.listed


def test_without_a_dockerd_it_is_written_all_the_same(
    places: Places, dockerd: FakeDockerd, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.install(Out(), places)
    assert "transship" in runtimes(places.daemon_json)
    assert "does not run here now" in capsys.readouterr().err


def test_link_in_place_of_daemon_json_is_followed(places: Places, dockerd: FakeDockerd, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    real.write_text("{}")
    places.daemon_json.symlink_to(real)
    setup.install(Out(), places)
    assert places.daemon_json.is_symlink()
    assert "transship" in runtimes(real)


def test_service_is_installed_where_systemd_is(places: Places, dockerd: FakeDockerd, tmp_path: Path) -> None:
    (tmp_path / "lib/systemd").mkdir(parents=True)
    (tmp_path / "lib/systemd/systemd").touch()
    setup.install(Out(), places)
    text = places.unit.read_text()
    assert "@TRANSSHIP@" not in text
    assert f"ExecStart={Path(sys.executable).with_name('transship')} agent\n" in text
    setup.remove(Out(), places, purge=False)
    assert not places.unit.exists()


# --- refusals: before anything is touched


def untouched(root: Path) -> bool:
    return not (root / "etc/transship").exists() and not (root / "usr").exists()


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"runtimes": []}', "{'a': 1}"])
def test_broken_daemon_json_is_refused(places: Places, dockerd: FakeDockerd, text: str) -> None:
    places.daemon_json.write_text(text)
    with pytest.raises(Refused) as caught:
        setup.install(Out(), places)
    assert str(places.daemon_json) in caught.value.message
    assert places.daemon_json.read_text() == text
    assert untouched(places.root)


@pytest.mark.parametrize("text", ["", "\n", "{}"])
def test_empty_daemon_json_is_an_empty_object(places: Places, dockerd: FakeDockerd, text: str) -> None:
    places.daemon_json.write_text(text)
    setup.install(Out(), places)
    assert list(runtimes(places.daemon_json)) == ["transship"]


@pytest.mark.parametrize("flags", [["--config-file", "/snap/d.json"], ["-D", "--config-file=/snap/d.json"]])
def test_dockerd_that_reads_another_file_is_refused(places: Places, dockerd: FakeDockerd, flags: list[str]) -> None:
    dockerd.flags = flags
    dockerd.start()
    with pytest.raises(Refused, match=r"reads /snap/d\.json") as caught:
        setup.install(Out(), places)
    assert "--daemon-json /snap/d.json" in caught.value.hint
    assert untouched(places.root)


def test_flag_that_gives_the_runtime_another_path_is_refused(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.flags += ["--add-runtime", "transship=/else", "--add-runtime=kata=/k"]
    dockerd.start()
    with pytest.raises(Refused, match="--add-runtime transship=/else"):
        setup.install(Out(), places)
    assert untouched(places.root)


def test_flags_of_other_runtimes_are_no_matter(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.flags += ["--add-runtime=kata=/k"]
    dockerd.start()
    assert setup.install(Out(), places) == OK


def test_dockerd_that_does_not_take_it_gets_its_old_file_back(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    dockerd.deaf = True
    text = '{"log-level": "nonsense"}'
    for before in (text, None):
        places.daemon_json.write_text(text) if before else places.daemon_json.unlink()
        with pytest.raises(DockerFailed, match="has not listed the runtime transship"):
            setup.install(Out(), places)
        assert (places.daemon_json.read_text() if places.daemon_json.exists() else None) == before
        assert not list(places.daemon_json.parent.glob("*transship*"))
    assert dockerd.reloads == 4


def test_default_flags_are_looked_up_in_proc() -> None:
    dockerd = Dockerd(1, ("dockerd",))
    assert dockerd.config_file() == Path("/etc/docker/daemon.json")
    check_flags(dockerd, Path("/etc/docker/daemon.json"), "transship", Path("/x"))
    assert Dockerd(1, ("dockerd", "--config-file")).config_file() == Path("/etc/docker/daemon.json")


# --- remove


@pytest.mark.parametrize(
    "text",
    [
        None,
        '{"debug":true}',
        '{\n    "runtimes": {\n        "kata": {\n            "path": "/k"\n        }\n    }\n}\n',
    ],
)
def test_remove_brings_back_what_was_there(places: Places, dockerd: FakeDockerd, text: str | None) -> None:
    dockerd.start()
    if text:
        places.daemon_json.write_text(text)
    setup.install(Out(), places)
    assert setup.remove(Out(), places, purge=False) == OK
    assert (places.daemon_json.read_text() if places.daemon_json.exists() else None) == text
    assert "transship" not in dockerd.listed
    assert not places.launcher.exists()
    assert not places.settings.exists()
    assert list((places.root / "etc").rglob("*transship*")) == []


def test_remove_keeps_what_was_changed_meanwhile(places: Places, dockerd: FakeDockerd) -> None:
    places.daemon_json.write_text('{"debug": true}')
    setup.install(Out(), places)
    content = json.loads(places.daemon_json.read_text())
    places.daemon_json.write_text(json.dumps({**content, "debug": False}))
    setup.remove(Out(), places, purge=False)
    assert json.loads(places.daemon_json.read_text()) == {"debug": False}


def test_remove_keeps_keys_journal_and_own_settings_unless_purged(places: Places, dockerd: FakeDockerd) -> None:
    setup.install(Out(), places)
    key, journal = places.root / "etc/transship/pki/host.key", places.root / "var/lib/transship/journal.sqlite"
    for file in (key, journal, places.settings):
        file.write_text("mine")
    setup.remove(Out(), places, purge=False)
    assert [file.read_text() for file in (key, journal, places.settings)] == ["mine"] * 3
    setup.remove(Out(), places, purge=True)
    assert not (places.root / "etc/transship").exists()
    assert not (places.root / "var/lib/transship").exists()


def test_remove_on_a_host_without_anything_does_nothing(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    assert setup.remove(Out(), places, purge=True) == OK
    assert dockerd.reloads == 0


def test_remove_is_refused_while_containers_need_the_runtime(places: Places, dockerd: FakeDockerd) -> None:
    dockerd.start()
    setup.install(Out(), places)
    dockerd.containers = {"web": "transship", "db": "runc"}
    with pytest.raises(Refused, match=r"could not be started again: web$") as caught:
        setup.remove(Out(), places, purge=False)
    assert caught.value.code is ErrorCode.BUSY
    assert places.launcher.exists()


def test_remove_is_refused_where_it_is_the_default_runtime(places: Places, dockerd: FakeDockerd) -> None:
    setup.install(Out(), places)
    content = json.loads(places.daemon_json.read_text())
    places.daemon_json.write_text(json.dumps({**content, "default-runtime": "transship"}))
    with pytest.raises(Refused, match="default runtime"):
        setup.remove(Out(), places, purge=False)


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


# --- what is shipped


def test_example_settings_can_be_loaded_as_they_are_and_with_every_line_in_force(tmp_path: Path) -> None:
    text = setup.shipped(setup.EXAMPLE)
    (tmp_path / "a.toml").write_text(text)
    settings = config.load(tmp_path / "a.toml")
    assert settings.peer.allow == ()
    lines = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()]
    (tmp_path / "b.toml").write_text("\n".join(lines))
    full = config.load(tmp_path / "b.toml")
    assert full.host == "node-a"
    assert full.limits == settings.limits, "a default in the example is not that of the program"
    assert full.deadlines == settings.deadlines
    for name in type(full.deadlines).model_fields:
        assert f"#{name} = " in text, f"deadlines.{name} is not in the example"


def test_service_lets_a_dump_end() -> None:
    text = setup.shipped(setup.UNIT)
    [stop] = [int(line.partition("=")[2]) for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    assert stop > config.Deadlines().dump
    assert "KillMode=mixed" in text
    assert "Type=notify" in text


def test_access_list_holds_every_topic_of_an_agent() -> None:
    text = (ROOT / "systemd/mosquitto.acl").read_text()
    for line in (
        "pattern read transship/v1/hosts/%u/command",
        "pattern write transship/v1/hosts/%u/status",
        "pattern write transship/v1/hosts/%u/containers/+",
        "pattern write transship/v1/hosts/%u/events",
        "pattern write transship/v1/migrations/+/%u/status",
        "pattern write transship/v1/migrations/+/%u/decision",
        "pattern read transship/v1/migrations/+/+/decision",
        "pattern write transship/v1/replies/#",
    ):
        assert f"\n{line}\n" in text
