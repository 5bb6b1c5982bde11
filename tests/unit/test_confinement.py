"""A container goes where what confines it is there too, or it stays."""

from pathlib import Path

import pytest

from agent.migration import confinement
from protocol.errors import ErrorCode
from protocol.status import Engine

WITH, WITHOUT = Engine(docker="28.5.2", apparmor=True), Engine(docker="28.5.2")


def against(option: str, there: Engine, here: Engine, *known: str) -> list[str]:
    create = {"HostConfig": {"SecurityOpt": ["no-new-privileges", option]} if option else {}}
    reasons = confinement.against(create, there, here, known)
    assert {reason.code for reason in reasons} <= {ErrorCode.INCOMPATIBLE}
    return [reason.message for reason in reasons]


@pytest.mark.parametrize("option", ["apparmor=shop", "apparmor:shop"])
def test_a_profile_that_its_user_has_named_has_to_be_loaded(option: str) -> None:
    assert against(option, WITH, WITH, "docker-default", "shop") == []
    [message] = against(option, WITH, WITH, "docker-default")
    assert "its AppArmor profile shop is not loaded here" in message
    [message] = against(option, WITHOUT, WITHOUT)
    assert "the AppArmor profile shop, and there is no AppArmor" in message


def test_docker_s_own_profile_needs_apparmor_and_dockerd_loads_it() -> None:
    assert against("", WITH, WITH) == []
    assert against("", WITHOUT, WITHOUT) == []
    assert against("", WITHOUT, WITH) == []
    [message] = against("", WITH, WITHOUT)
    assert "docker-default" in message


@pytest.mark.parametrize(("there", "here"), [(WITH, WITHOUT), (WITHOUT, WITH), (WITH, WITH)])
def test_the_unconfined_go_anywhere(there: Engine, here: Engine) -> None:
    assert against("apparmor=unconfined", there, here) == []


def test_profiles_are_read_as_the_kernel_lists_them(tmp_path: Path) -> None:
    file = tmp_path / "profiles"
    file.write_text("docker-default (enforce)\n/usr/bin/man//filter (with space) (complain)\n")
    assert confinement.loaded(file) == {"docker-default", "/usr/bin/man//filter (with space)"}
    assert confinement.loaded(tmp_path / "none") == set()
