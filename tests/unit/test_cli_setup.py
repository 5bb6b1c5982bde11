"""`transship setup` on a host below a temporary folder: what it writes, and what it leaves as it is."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from agent.base import config
from agent.cli import setup
from agent.cli.output import OK, Out
from agent.cli.setup import Places
from tests.unit import setup_host
from tests.unit.setup_host import FakeDockerd, runtimes

dockerd = pytest.fixture(setup_host.dockerd)
places = pytest.fixture(setup_host.places)

ROOT = Path(__file__).parents[2]


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


def test_units_of_a_debian_package_are_not_written_again_but_older_ones_that_hide_them_are(
    places: Places, dockerd: FakeDockerd, tmp_path: Path
) -> None:
    for name in ("lib/systemd/systemd", "usr/lib/systemd/system/transship-agent.service"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    setup.install(Out(), places)
    assert not places.unit.exists()
    assert not any(file.exists() for file in places.beside_unit.values())
    places.unit.parent.mkdir(parents=True)
    places.unit.write_text("ExecStart=/opt/older/bin/transship agent\n")
    setup.install(Out(), places)
    assert "/opt/older" not in places.unit.read_text()
    setup.remove(Out(), places, purge=False)
    assert not places.unit.exists()


def test_logind_is_told_to_wait_and_that_is_taken_back(places: Places, dockerd: FakeDockerd, tmp_path: Path) -> None:
    (tmp_path / "lib/systemd").mkdir(parents=True)
    (tmp_path / "lib/systemd/systemd").touch()
    (tmp_path / "etc/systemd/logind.conf.d").mkdir(parents=True)
    (tmp_path / "etc/systemd/logind.conf.d/50-theirs.conf").touch()
    setup.install(Out(), places)
    logind, tmpfiles = (places.beside_unit[name] for name in (setup.LOGIND, setup.TMPFILES))
    assert "[Login]\nInhibitDelayMaxSec=" in logind.read_text()
    assert "/var/lib/transship/hibernated 0700 root root" in tmpfiles.read_text()
    setup.remove(Out(), places, purge=False)
    assert not logind.exists()
    assert not tmpfiles.exists()
    assert [path.name for path in logind.parent.iterdir()] == ["50-theirs.conf"]
