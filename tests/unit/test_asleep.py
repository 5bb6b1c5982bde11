"""What must be as it was for a hibernated container to wake; and the claim on its memory, which is made once."""

import os
from pathlib import Path

import pytest

from agent.runtime import asleep, wake

CONFIG = {
    "process": {"args": ["redis"], "env": ["A=1", "B=2"], "cwd": "/", "user": {"uid": 0}},
    "mounts": [{"destination": "/data", "type": "bind", "source": "/srv"}],
    "linux": {"namespaces": [{"type": "pid"}], "resources": {"memory": {"limit": 1}}},
    "hostname": "cache",
}


def changed(config: dict[str, object], upper: Path, criu: str = "4.2") -> list[str]:
    before = asleep.fingerprint(CONFIG, str(upper), "4.2")
    return asleep.changed(before, asleep.fingerprint(config, str(upper), criu))


@pytest.mark.parametrize(
    "other",
    [
        {"process": {**CONFIG["process"], "args": ["redis", "--other"]}},  # type: ignore[dict-item]
        {"process": {**CONFIG["process"], "env": ["A=1"]}},  # type: ignore[dict-item]
        {"mounts": []},
        {"hostname": "other"},
    ],
)
def test_another_configuration_is_found_out(other: dict[str, object], tmp_path: Path) -> None:
    assert changed({**CONFIG, **other}, tmp_path) == ["configuration"]


def test_what_docker_words_anew_and_limits_are_no_other_configuration(tmp_path: Path) -> None:
    linux = {**CONFIG["linux"], "resources": {"memory": {"limit": 2}}}  # type: ignore[dict-item]
    mounts = [{"destination": "/data", "type": "bind", "source": "/elsewhere"}]
    config = {**CONFIG, "linux": linux, "mounts": mounts, "hooks": {"prestart": [{"args": ["new"]}]}}
    assert changed(config, tmp_path) == []


def test_another_criu_is_found_out(tmp_path: Path) -> None:
    assert changed(CONFIG, tmp_path, criu="4.3") == ["criu"]


def test_a_processor_may_learn_but_not_forget(tmp_path: Path) -> None:
    now = asleep.fingerprint(CONFIG, str(tmp_path), "4.2")
    assert now["processor"]
    assert asleep.changed(now, {**now, "processor": [*now["processor"], "new"]}) == []
    assert asleep.changed(now, {**now, "processor": now["processor"][1:]}) == ["processor"]


def test_any_change_of_the_writable_layer_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc/one"
    file.write_text("1")
    before = asleep.tree(str(tmp_path))
    assert asleep.tree(str(tmp_path)) == before
    status = file.stat()
    file.write_text("2")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time of its change can't be set back
    second = asleep.tree(str(tmp_path))
    assert second != before
    (tmp_path / "new").symlink_to("etc")
    assert asleep.tree(str(tmp_path)) != second
    assert asleep.tree(str(tmp_path / "gone")) != asleep.tree(str(tmp_path / "etc"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(asleep, "ROOT", str(tmp_path))
    (tmp_path / "c1").mkdir()
    return tmp_path


def test_what_sleeps_is_claimed_once(place: Path) -> None:
    assert wake.claim("c1") == f"{place}/c1.waking"
    assert [path.name for path in place.iterdir()] == ["c1.waking"]
    assert wake.claim("other") is None


def test_a_claim_that_has_let_nothing_run_is_taken_up_again(place: Path) -> None:
    wake.claim("c1")
    assert wake.claim("c1") == f"{place}/c1.waking"


def test_a_claim_that_is_given_back_sleeps_on(place: Path) -> None:
    claimed = wake.claim("c1")
    assert claimed
    wake.give_back(claimed)
    assert [path.name for path in place.iterdir()] == ["c1"]


def test_what_has_run_is_never_claimed_again(place: Path) -> None:
    (Path(wake.claim("c1") or "") / asleep.RELEASED).touch()
    assert wake.claim("c1") is None
    assert list(place.iterdir()) == []
