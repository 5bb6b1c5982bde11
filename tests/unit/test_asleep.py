"""What must be as it was for a hibernated container to wake; and the claim on its memory, which is made once."""

import contextlib
import os
from pathlib import Path

import pytest

from agent.runtime import asleep, restore, wake

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
    (tmp_path / "c1" / "images").mkdir(parents=True)
    (tmp_path / "c1" / "images" / "pages-1.img").write_text("memory")
    (tmp_path / "c1" / asleep.RECORD).write_text("{}")
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


@pytest.mark.parametrize("step", range(9))
def test_a_crash_while_it_is_cleared_away_never_has_it_sleep_again(
    place: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power is cut before the step of that number: each is one that changes what is on the disk."""
    claimed = wake.claim("c1") or ""
    (Path(claimed) / asleep.RELEASED).touch()
    left = [step]

    def counted(name: str) -> None:
        real = getattr(os, name)

        def step_or_crash(*args: object, **more: object) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args, **more)

        monkeypatch.setattr(os, name, step_or_crash)

    with monkeypatch.context() as patched:
        monkeypatch = patched
        for name in ("unlink", "rmdir"):
            counted(name)
        with contextlib.suppress(KeyboardInterrupt):
            asleep.use_up(claimed)
    assert wake.claim("c1") is None
    assert list(place.iterdir()) == []


def test_what_is_refused_and_started_cold_is_used_up_before_any_of_it_goes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = wake.claim("c1") or ""

    def crash(path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            asleep.use_up(claimed)
    assert wake.claim("c1") is None


def test_a_restore_that_says_nothing_is_given_up() -> None:
    fifo, says = os.pipe()
    ended, ends = os.pipe()
    try:
        assert restore.first_word(fifo, ended, 0.01) == 0
        os.write(says, b"42")
        assert restore.first_word(fifo, ended, 5) == 42
    finally:
        for each in (fifo, says, ended, ends):
            os.close(each)
