"""The networks of a recorded container, and its addresses on them, as they are asked for on a target."""

from typing import Any

import pytest

from agent.doors import docker_model
from agent.migration import spec
from tests.unit import recorded
from tests.unit.recorded import ENGINES, SAID, container, create, described, ends

engine = pytest.fixture(params=ENGINES)(recorded.engine)


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
