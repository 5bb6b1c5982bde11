"""`transship setup --remove` brings back the host as it was, unless containers need the runtime."""

import json

import pytest

from agent.base.errors import Refused
from agent.cli import setup
from agent.cli.output import OK, Out
from agent.cli.setup import Places
from protocol.errors import ErrorCode
from tests.unit import setup_host
from tests.unit.setup_host import FakeDockerd

dockerd = pytest.fixture(setup_host.dockerd)
places = pytest.fixture(setup_host.places)


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


def test_remove_leaves_nothing_in_run_but_what_containers_run_from(places: Places, dockerd: FakeDockerd) -> None:
    setup.install(Out(), places)
    run = places.root / "run/transship"
    (run / "handover").mkdir(parents=True)
    (run / "init").mkdir()
    (run / "init/docker-init").write_text("a program")
    setup.remove(Out(), places, purge=True)
    assert [path.name for path in sorted(run.rglob("*"))] == ["init", "docker-init"]
    (run / "init/docker-init").unlink()
    setup.remove(Out(), places, purge=True)
    assert not run.exists()


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
