"""From the recorded inspect of both engines to the body that makes the same container on a target."""

import json

import pytest

from agent.migration.fields import KNOWN_FIELDS, Fate
from tests.unit import recorded
from tests.unit.recorded import ENGINES, NAMES, SAID, container, create, described

engine = pytest.fixture(params=ENGINES)(recorded.engine)


# Configuration


@pytest.mark.parametrize("name", NAMES)
def test_every_field_that_is_kept_is_in_the_body_as_it_was(engine: str, name: str) -> None:
    raw, body = SAID[engine]["containers"][name], create(engine, name)
    for path, field in KNOWN_FIELDS.items():
        section, _, key = path.partition(".")
        if field.fate is not Fate.KEPT or section not in ("Config", "HostConfig") or key not in raw[section]:
            continue
        here = body if section == "Config" else body["HostConfig"]
        if path not in ("HostConfig.RestartPolicy", "Config.Entrypoint", "HostConfig.Binds"):
            assert here[key] == raw[section][key], path


@pytest.mark.parametrize("name", NAMES)
def test_what_the_target_or_the_story_decides_is_not_asked_for(engine: str, name: str) -> None:
    body = create(engine, name)
    assert "Runtime" not in body["HostConfig"]
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert "MacAddress" not in body
    text = json.dumps(body)
    assert SAID[engine]["containers"][name]["Id"] not in text
    for network in SAID[engine]["networks"].values():
        assert network["Id"] not in text


def test_fields_from_the_image_are_said_explicitly(engine: str) -> None:
    body = create(engine, "checked")
    assert (body["Entrypoint"], body["Cmd"]) == (["sleep"], ["2000"])
    assert "FROM_IMAGE=yes" in body["Env"]
    assert body["Labels"] == {"from": "image"}
    assert body["ExposedPorts"] == {"80/tcp": {}, "81/udp": {}}
    assert body["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]


def test_a_cleared_entrypoint_stays_cleared(engine: str) -> None:
    """Docker shows it as null; null in a body would bring the image's back."""
    assert create(engine, "bare")["Entrypoint"] == [""]
    assert create(engine, "bare")["Healthcheck"]["Test"] == ["NONE"]
    assert create(engine, "plain")["Entrypoint"] is None


def test_the_host_name_stays_though_docker_chose_it(engine: str) -> None:
    found = container(engine, "plain")
    assert described(engine, found).create["Hostname"] == found.id[:12]


def test_a_field_from_the_future_is_passed_on_and_noted(engine: str) -> None:
    raw = SAID[engine]["containers"]["plain"]
    found = container(engine, "plain", HostConfig={**raw["HostConfig"], "Teleport": True})
    result = described(engine, found)
    assert result.create["HostConfig"]["Teleport"] is True
    assert "docker inspect shows HostConfig.Teleport, which this version does not know" in result.notes


# Volumes and mounts


def test_volumes_and_binds_are_told_with_all_that_makes_them(engine: str) -> None:
    found = container(engine, "mounts")
    volumes = {volume.destination: volume for volume in described(engine, found).volumes}
    assert set(volumes) == {mount.destination for mount in found.mounts if mount.kind != "tmpfs"}
    assert volumes["/named"].labels == {"keep": "yes"}
    assert not volumes["/named"].anonymous
    assert (volumes["/again"].name, volumes["/again"].read_only) == ("named", True)
    assert volumes["/anonymous"].anonymous
    assert volumes["/anonymous-too"].anonymous
    assert volumes["/scratch"].options == {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    assert (volumes["/host-etc"].kind, volumes["/host-etc"].name) == ("bind", "/etc")


def test_anonymous_volumes_are_left_to_docker(engine: str) -> None:
    """It makes them anew, under a name of its choice, and removes them with the container as before."""
    found = container(engine, "mounts")
    result = described(engine, found)
    assert result.create["HostConfig"]["Mounts"] == found.raw["HostConfig"]["Mounts"]
    assert result.create["Volumes"] == {"/anonymous": {}}
    assert {volume.destination for volume in result.volumes if volume.anonymous} == {"/anonymous", "/anonymous-too"}
    assert "its anonymous volumes keep their content, not their names" in result.notes


def test_named_volumes_and_binds_stay_where_the_user_wrote_them(engine: str) -> None:
    found = container(engine, "mounts")
    assert described(engine, found).create["HostConfig"]["Binds"] == found.raw["HostConfig"]["Binds"]


def test_a_bind_of_a_place_alone_is_an_anonymous_volume(engine: str) -> None:
    binds = [*SAID[engine]["containers"]["mounts"]["HostConfig"]["Binds"], "/anonymous"]
    result = described(engine, container(engine, "mounts", HostConfig__Binds=binds, Config__Volumes=None))
    assert "/anonymous" in result.create["HostConfig"]["Binds"]
    assert {volume.destination for volume in result.volumes if volume.anonymous} == {"/anonymous", "/anonymous-too"}


def test_borrowed_volumes_are_written_out(engine: str) -> None:
    result = described(engine, container(engine, "borrower"))
    body = result.create["HostConfig"]
    assert body["VolumesFrom"] is None
    assert body["Binds"] == ["named:/own"]
    mounts = {entry["Target"]: entry for entry in body["Mounts"]}
    assert set(mounts) == {"/named", "/lent", "/host-etc"}
    assert mounts["/named"] == {
        "Type": "volume",
        "Target": "/named",
        "ReadOnly": True,
        "Source": "named",
        "VolumeOptions": {"NoCopy": True},
    }
    assert mounts["/host-etc"] == {"Type": "bind", "Target": "/host-etc", "ReadOnly": True, "Source": "/etc"}
    assert "its --volumes-from is written out as mounts of its own" in result.notes


# Ports


def test_ports_of_dockers_choice_are_noted(engine: str) -> None:
    assert {note for note in described(engine, container(engine, "network")).notes if "port" in note} == {
        "port 53/udp is published on a port of Docker's choice, which will be another"
    }
    assert sum("port" in note for note in described(engine, container(engine, "checked")).notes) == 2
    assert not any("port" in note for note in described(engine, container(engine, "bridge-mac")).notes)
