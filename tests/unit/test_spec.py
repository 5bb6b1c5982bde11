"""From the recorded inspect of both engines to the body that makes the same container on a target."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from agent.doors import docker_model
from agent.doors.docker_model import Container
from agent.migration import fields, spec
from agent.migration.fields import KNOWN_FIELDS, Fate
from agent.migration.spec import Spec

DATA = Path(__file__).parent / "data"
PAGE = Path(__file__).parents[2] / "docs/fidelity.md"
ENGINES = ("docker26", "docker28")
SAID: dict[str, dict[str, Any]] = {name: json.loads((DATA / f"inspect-{name}.json").read_text()) for name in ENGINES}
NAMES = sorted(SAID["docker26"]["containers"])


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def container(engine: str, name: str, **changes: Any) -> Container:
    """A recorded container; `changes` are dotted paths in its inspect, with __ for the dot."""
    raw = copy.deepcopy(SAID[engine]["containers"][name])
    for path, value in changes.items():
        *above, last = path.split("__")
        node = raw
        for key in above:
            node = node[key]
        node[last] = value
    return docker_model.container(raw)


def described(engine: str, found: Container) -> Spec:
    said = SAID[engine]
    image = said["images"].get(found.image)
    return spec.spec_of(
        found,
        docker_model.image(image) if image else None,
        {name: docker_model.network(raw) for name, raw in said["networks"].items()},
        {name: docker_model.volume(raw) for name, raw in said["volumes"].items()},
    )


def create(engine: str, name: str, **changes: Any) -> dict[str, Any]:
    return described(engine, container(engine, name, **changes)).create


def ends(engine: str, name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = create(engine, name, **changes)["NetworkingConfig"]["EndpointsConfig"]
    return found


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


# Networks


def test_addresses_of_the_users_choice_are_kept(engine: str) -> None:
    assert ends(engine, "network") == {
        "front": {
            "IPAMConfig": {"IPv4Address": "10.90.1.200", "IPv6Address": "fd90:1::200"},
            "Aliases": ["web", "www"],
            "MacAddress": "02:42:0a:5a:01:c8",
        }
    }
    assert described(engine, container(engine, "network")).pinned == {}


def test_the_current_address_is_pinned_on_a_user_defined_network(engine: str) -> None:
    found = container(engine, "two-networks")
    result = described(engine, found)
    attached = {one.network: one for one in found.networks}
    there = result.create["NetworkingConfig"]["EndpointsConfig"]
    assert set(there) == {"back", "front"}
    assert there["back"]["IPAMConfig"] == {"IPv4Address": attached["back"].ipv4.partition("/")[0]}
    assert there["back"]["MacAddress"] == attached["back"].mac
    assert there["front"]["IPAMConfig"]["IPv6Address"] == attached["front"].ipv6.partition("/")[0]
    assert there["front"]["Aliases"] == ["shop"]
    assert there["front"]["DriverOpts"] == {
        "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1"
    }
    assert set(result.pinned) == {"back", "front"}
    assert not result.address_moves_along


def test_on_macvlan_the_address_moves_along(engine: str) -> None:
    found = container(engine, "macvlan")
    result = described(engine, found)
    [attached] = found.networks
    assert result.address_moves_along
    assert result.create["NetworkingConfig"]["EndpointsConfig"]["lan"]["MacAddress"] == attached.mac
    [network] = result.networks
    assert (network.name, network.driver, network.mac) == ("lan", "macvlan", attached.mac)
    assert network.addresses == attached.addresses
    assert len(network.addresses) == 2


def test_the_default_bridge_takes_no_wishes(engine: str) -> None:
    result = described(engine, container(engine, "plain"))
    assert result.create["NetworkingConfig"]["EndpointsConfig"] == {"bridge": {}}
    assert not result.address_moves_along
    assert result.pinned == {}
    [network] = result.networks
    assert (network.create, network.addresses, network.mac) == ({}, (), "")
    assert "on Docker's default bridge it may have another address" in result.notes


def test_a_mac_address_of_the_users_choice_is_kept_on_the_default_bridge(engine: str) -> None:
    assert ends(engine, "bridge-mac") == {"bridge": {"MacAddress": "02:42:ac:11:77:77"}}


def test_without_a_network_everything_moves_along(engine: str) -> None:
    result = described(engine, container(engine, "offline"))
    assert result.create["HostConfig"]["NetworkMode"] == "none"
    assert result.create["NetworkingConfig"]["EndpointsConfig"] == {}
    assert result.address_moves_along
    assert result.create["HostConfig"]["AutoRemove"]


def test_the_short_id_that_older_versions_add_is_no_alias(engine: str) -> None:
    found = container(engine, "network")
    short = found.id[:12]
    aliased = container(engine, "network", NetworkSettings__Networks__front__Aliases=["web", short])
    assert described(engine, aliased).create["NetworkingConfig"]["EndpointsConfig"]["front"]["Aliases"] == ["web"]


@pytest.mark.parametrize("length", [64, 12])
def test_a_network_that_was_given_by_its_id_is_named(engine: str, length: int) -> None:
    network = SAID[engine]["networks"]["front"]["Id"][:length]
    assert create(engine, "network", HostConfig__NetworkMode=network)["HostConfig"]["NetworkMode"] == "front"


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("default", "bridge"), ("bridge", "bridge"), ("host", "host"), ("container:ab", "container:ab")],
)
def test_network_modes(engine: str, mode: str, wanted: str) -> None:
    assert create(engine, "plain", HostConfig__NetworkMode=mode)["HostConfig"]["NetworkMode"] == wanted


def test_a_network_that_was_left_is_not_joined_again(engine: str) -> None:
    raw = SAID[engine]["containers"]["two-networks"]["NetworkSettings"]["Networks"]
    found = container(engine, "two-networks", NetworkSettings__Networks={"front": raw["front"]})
    result = described(engine, found)
    assert result.create["HostConfig"]["NetworkMode"] == "front"
    assert set(result.create["NetworkingConfig"]["EndpointsConfig"]) == {"front"}
    assert any("no longer on its first network back" in note for note in result.notes)


@pytest.mark.parametrize(
    ("driver", "ipam", "pinned"),
    [
        ("bridge", "default", True),
        ("ipvlan", "default", True),
        ("macvlan", "dhcp", False),
        ("overlay", "default", False),
    ],
)
def test_addresses_are_asked_for_where_the_driver_takes_them(driver: str, ipam: str, pinned: bool) -> None:
    raw = {**SAID["docker28"]["networks"]["lan"], "Driver": driver, "IPAM": {"Driver": ipam, "Config": []}}
    result = spec.spec_of(container("docker28", "macvlan"), None, {"lan": docker_model.network(raw)}, {})
    end = result.create["NetworkingConfig"]["EndpointsConfig"]["lan"]
    assert ("IPAMConfig" in end) == pinned
    assert ("MacAddress" in end) == (pinned and driver != "ipvlan")
    assert result.address_moves_along == (driver == "ipvlan")


def test_what_a_move_has_asked_for_is_not_the_users_wish(engine: str) -> None:
    """After a move, inspect shows a pinned address as if it had been asked for."""
    ipam = {"IPv4Address": "10.90.1.200", "IPv6Address": "fd90:1::200"}
    found = container(engine, "network", NetworkSettings__Networks__front__IPAMConfig=ipam)
    networks = {name: docker_model.network(raw) for name, raw in SAID[engine]["networks"].items()}
    before = {"front": ("IPv4Address", "MacAddress")}
    result = spec.spec_of(found, None, networks, {}, before)
    end = result.create["NetworkingConfig"]["EndpointsConfig"]["front"]
    assert end["IPAMConfig"] == ipam
    assert end["MacAddress"] == "02:42:0a:5a:01:c8"
    assert result.pinned == {"front": ("IPv4Address", "MacAddress")}


def network_body(engine: str, name: str, **changes: Any) -> dict[str, Any]:
    return spec.network_create_body(docker_model.network({**SAID[engine]["networks"][name], **changes}))


def test_a_network_is_made_again_with_all_its_wishes(engine: str) -> None:
    body = network_body(engine, "front")
    assert body["Name"] == "front"
    assert body["Driver"] == "bridge"
    assert body["EnableIPv6"]
    assert body["Labels"] == {"tier": "front"}
    assert body["Options"] == {"com.docker.network.bridge.name": "br-front"}
    assert body["IPAM"]["Config"][0] == {
        "Subnet": "10.90.1.0/24",
        "IPRange": "10.90.1.128/25",
        "Gateway": "10.90.1.254",
        "AuxiliaryAddresses": {"printer": "10.90.1.129"},
    }
    assert body["IPAM"]["Config"][1]["Subnet"] == "fd90:1::/64"
    assert not {"Id", "Created", "Containers", "Scope", "Ingress", "ConfigOnly"} & set(body)
    assert network_body(engine, "back")["Internal"]
    assert network_body(engine, "back")["Attachable"]
    assert network_body(engine, "lan")["Options"] == {"parent": "eth0"}


def test_a_gateway_is_said_without_prefix_length() -> None:
    ipam = {"Driver": "default", "Config": [{"Subnet": "fd00::/64", "Gateway": "fd00::1/64"}]}
    body = network_body("docker26", "back", EnableIPv6=True, IPAM=ipam)
    assert body["IPAM"]["Config"] == [{"Subnet": "fd00::/64", "Gateway": "fd00::1"}]


def test_a_network_from_a_configuration_leaves_the_subnets_to_it() -> None:
    body = network_body("docker28", "lan", ConfigFrom={"Network": "lan-config"})
    assert body["ConfigFrom"] == {"Network": "lan-config"}
    assert "IPAM" not in body
    assert "Options" not in body


@pytest.mark.parametrize("changes", [{"Scope": "swarm"}, {"Ingress": True}, {"ConfigOnly": True}, {"Name": "bridge"}])
def test_networks_that_can_not_be_made(changes: dict[str, Any]) -> None:
    assert network_body("docker28", "front", **changes) == {}


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


# The table of fields


@pytest.mark.parametrize("name", NAMES)
def test_the_table_knows_every_recorded_field(engine: str, name: str) -> None:
    assert fields.unknown_fields(SAID[engine]["containers"][name]) == ()


def test_a_container_is_the_same_as_itself(engine: str) -> None:
    for raw in SAID[engine]["containers"].values():
        assert fields.differences(raw, raw) == ()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("Config__Env", ["A=1"], "Config.Env was"),
        ("HostConfig__Memory", 7, "HostConfig.Memory was 0 and is 7"),
        ("HostConfig__MemorySwappiness", 0, "HostConfig.MemorySwappiness was None and is 0"),
        ("HostConfig__Privileged", True, "HostConfig.Privileged was False and is True"),
        ("NetworkSettings__Networks__bridge__Aliases", ["x"], "NetworkSettings.Networks[bridge].Aliases was None"),
        ("HostConfig__Teleport", 1, "HostConfig.Teleport is not known"),
        ("Mounts", [{"Destination": "/d", "Type": "bind", "RW": False}], "Mounts[/d].Type was None and is 'bind'"),
    ],
)
def test_a_difference_is_a_sentence(path: str, value: Any, said: str) -> None:
    before = SAID["docker28"]["containers"]["plain"]
    after = container("docker28", "plain", **{path: value}).raw
    assert any(text.startswith(said) for text in fields.differences(before, after)), fields.differences(before, after)


@pytest.mark.parametrize(
    ("path", "value"),
    [("Id", "f" * 64), ("HostConfig__CapAdd", []), ("HostConfig__OomKillDisable", None), ("State__Pid", 1)],
)
def test_what_is_recreated_or_nothing_in_another_spelling_is_no_difference(path: str, value: Any) -> None:
    before = SAID["docker28"]["containers"]["plain"]
    assert fields.differences(before, container("docker28", "plain", **{path: value}).raw) == ()


def test_every_fate_but_kept_has_a_reason() -> None:
    for field in KNOWN_FIELDS.values():
        assert field.reason or field.fate is Fate.KEPT, field.path


def test_what_is_not_tried_is_a_known_field() -> None:
    assert {KNOWN_FIELDS[path].fate for path in fields.NOT_TRIED} == {Fate.KEPT, Fate.REFUSED}


def test_an_anonymous_volume_may_have_another_name() -> None:
    before = SAID["docker28"]["containers"]["mounts"]
    after = copy.deepcopy(before)
    for mount in after["Mounts"]:
        if len(mount.get("Name", "")) == 64:
            mount["Name"] = "f" * 64
    for mount in after["HostConfig"]["Mounts"]:
        (mount.get("VolumeOptions", {}).get("Labels") or {}).pop("com.docker.volume.anonymous", None)
    assert fields.differences(before, after) == ()
    next(mount for mount in after["Mounts"] if mount["Destination"] == "/named")["Name"] = "f" * 64
    assert fields.differences(before, after) == (f"Mounts[/named].Name was 'named' and is '{'f' * 64}'",)


def test_the_page_has_the_table_of_now() -> None:
    text = PAGE.read_text()
    assert fields.page(text) == text, "run: python -m agent.migration.fields --write docs/fidelity.md"


def test_the_page_tells_by_which_container_each_field_was_shown() -> None:
    """What the end-to-end tests have written there, and write anew when it has changed."""
    text = PAGE.read_text()
    assert fields.page(text, {"Config.Tty": ("another",)}) != text
    kept = fields.page(text, {"Config.Env": ("b", "a")})
    assert "| `Config.Env` | kept | | a, b |" in kept
    assert fields.page(kept) == kept
    silent = [
        line
        for line in text.splitlines()
        if line.startswith(("| `Config", "| `HostConfig", "| `Mounts", "| `NetworkSettings.Networks"))
        and (" | kept | " in line or " | refused | " in line)
        and line.endswith("| |")
    ]
    assert silent == [], "neither shown nor said why not"


def test_the_table_can_be_read() -> None:
    made = fields.as_markdown({"Config.Tty": ("terminal",)})
    assert "| `Config.Tty` | refused | the other end of the terminal is on the source | terminal |" in made
