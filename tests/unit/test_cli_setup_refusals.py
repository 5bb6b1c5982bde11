"""`transship setup` refuses before anything is touched, or puts back what it has touched."""

from pathlib import Path

import pytest

from agent.base.errors import DockerFailed, Refused
from agent.cli import setup
from agent.cli.output import OK, Out
from agent.cli.registration import Dockerd, check_flags
from agent.cli.setup import Places
from tests.unit import setup_host
from tests.unit.setup_host import FakeDockerd, runtimes

dockerd = pytest.fixture(setup_host.dockerd)
places = pytest.fixture(setup_host.places)


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
