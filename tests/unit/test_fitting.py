"""What an offer asks for, as this host's engine, networks and ports can give it."""

import socket
from typing import Any

import pytest

from agent.doors import docker_model
from agent.doors.docker_model import Network
from agent.migration import fitting, ports
from agent.migration.fitting import Fitted
from protocol.commands import TcpPolicy
from protocol.errors import ErrorCode
from protocol.peer import Listening, Offer
from protocol.peer import Network as Wanted

SUBNET = {"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}
PINNED = {"net": ("IPv4Address", "MacAddress")}


def body(end: dict[str, Any] | None = None, **host: Any) -> dict[str, Any]:
    wishes = {"IPAMConfig": {"IPv4Address": "10.9.0.7"}, "MacAddress": "02:42:0a:09:00:07", "Aliases": ["a"]}
    ends = {"net": wishes if end is None else end}
    return {"HostConfig": {"NetworkMode": "net", **host}, "NetworkingConfig": {"EndpointsConfig": ends}}


def offer(create: dict[str, Any] | None = None, **fields: Any) -> Offer:
    made = {"Name": "net", "Driver": "bridge", "IPAM": {"Config": [SUBNET]}}
    given = {
        "create": create or body(),
        "networks": (Wanted(name="net", driver="bridge", create=made),),  # type: ignore[arg-type]
        "pinned": {},
        "tcp": TcpPolicy.CLOSE,
        **fields,
    }
    return Offer.model_construct(**given)


def network(*addresses: str, subnet: dict[str, Any] | None = None, name: str = "net") -> Network:
    raw = {"Id": "1", "Name": name, "Driver": "bridge", "IPAM": {"Config": [subnet or SUBNET]}}
    raw["Containers"] = {str(number): {"IPv4Address": address} for number, address in enumerate(addresses)}
    return docker_model.network(raw)


def fit(wanted: Offer, here: Network, taken: Any = ()) -> Fitted:
    return fitting.fit_networks(wanted, {"net": here}, taken)


def test_an_address_that_is_free_is_taken_as_it_is() -> None:
    assert fit(offer(), network("10.9.0.8/24")) == Fitted(body())
    assert fitting.fit_networks(offer(), {}) == Fitted(body()), "a network that is to be made takes it all"


@pytest.mark.parametrize(
    ("here", "taken", "code"),
    [
        (network("10.9.0.7/24"), (), ErrorCode.ADDRESS_TAKEN),
        (network(subnet={**SUBNET, "Gateway": "10.9.0.7"}), (), ErrorCode.ADDRESS_TAKEN),
        (network(subnet={**SUBNET, "AuxiliaryAddresses": {"printer": "10.9.0.7"}}), (), ErrorCode.ADDRESS_TAKEN),
        (network(), {("net", "10.9.0.7")}, ErrorCode.ADDRESS_TAKEN),
        (network(subnet={"Subnet": "10.8.0.0/16"}), (), ErrorCode.INCOMPATIBLE),
        (network(subnet={"Subnet": "fd00::/64"}), (), ErrorCode.INCOMPATIBLE),
    ],
)
def test_one_that_is_not_to_be_had_is_given_up_or_stands_against_it(here: Network, taken: Any, code: ErrorCode) -> None:
    [reason] = fit(offer(), here, taken).reasons
    assert reason.code is code
    assert "10.9.0.7" in reason.message
    [reason] = fit(offer(pinned=PINNED, tcp=TcpPolicy.KEEP), here, taken).reasons
    assert reason.code is code, "connections hang on it"
    fitted = fit(offer(pinned=PINNED), here, taken)
    assert not fitted.reasons
    assert fitted.create["NetworkingConfig"]["EndpointsConfig"] == {"net": {"Aliases": ["a"]}}
    [note] = fitted.notes
    assert note.startswith("it gets another address than 10.9.0.7 on net")


def test_a_mac_address_goes_with_the_address_that_it_was_made_of() -> None:
    for mac, left in (("02:42:0A:09:00:07", {}), ("be:97:91:83:c5:04", {"MacAddress": "be:97:91:83:c5:04"})):
        end = {"IPAMConfig": {"IPv4Address": "10.9.0.7"}, "MacAddress": mac}
        wanted = offer(body(end), pinned={"net": ("IPv4Address", "MacAddress")})
        fitted = fit(wanted, network("10.9.0.7/24"))
        assert fitted.create["NetworkingConfig"]["EndpointsConfig"]["net"] == left


def test_what_the_user_asked_for_stays_when_the_rest_is_given_up() -> None:
    end = {"IPAMConfig": {"IPv4Address": "10.9.0.7", "IPv6Address": "fd00::7"}, "MacAddress": "02:42:0a:09:00:07"}
    left = fitting.without_addresses(body(end), {"net": ("IPv6Address",)})
    assert left["NetworkingConfig"]["EndpointsConfig"]["net"] == {**end, "IPAMConfig": {"IPv4Address": "10.9.0.7"}}


def test_addresses_that_are_asked_for_are_listed() -> None:
    assert fitting.addresses(body()) == {("net", "10.9.0.7")}
    assert fitting.addresses(body({})) == frozenset()


def test_a_missing_network_is_made_the_same_or_with_another_subnet() -> None:
    [wanted] = offer().networks
    others = [network(name="other", subnet={"Subnet": "10.8.0.0/16"})]
    assert fitting.network_here(offer(), wanted, others) == (wanted.create, "", "")
    others.append(network(name="rival", subnet={"Subnet": "10.0.0.0/8"}))
    _, _, against = fitting.network_here(offer(), wanted, others)
    assert "10.9.0.0/24 overlaps with 10.0.0.0/8 of rival" in against
    made, note, against = fitting.network_here(offer(pinned=PINNED), wanted, others)
    assert not against
    assert made["IPAM"] == {"Config": []}
    assert "rival" in note


def test_settings_of_an_interface_go_with_its_network_from_docker_28_on_and_back() -> None:
    before = body({"Aliases": ["a"]}, Sysctls={"net.ipv4.conf.eth0.forwarding": "1", "kernel.msgmax": "4096"})
    assert fitting.fit_engine(before, "1.45") == Fitted(before)
    there = fitting.fit_engine(before, "1.51").create
    assert there["HostConfig"]["Sysctls"] == {"kernel.msgmax": "4096"}
    end = there["NetworkingConfig"]["EndpointsConfig"]["net"]
    assert end["DriverOpts"] == {fitting.ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.forwarding=1"}
    back = fitting.fit_engine(there, "1.45").create
    assert back["HostConfig"] == before["HostConfig"]
    assert back["NetworkingConfig"]["EndpointsConfig"]["net"] == {"Aliases": ["a"], "DriverOpts": {}}


def test_what_docker_26_does_not_know_is_noted() -> None:
    second = {"DriverOpts": {fitting.ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.forwarding=1"}, "GwPriority": 7}
    both = body({})
    both["NetworkingConfig"]["EndpointsConfig"]["second"] = second
    assert fitting.fit_engine(both, "1.51").notes == ()
    priority, settings = fitting.fit_engine(both, "1.45").notes
    assert "gateway on second" in priority
    assert "interface on second" in settings


# Ports


def published(**bindings: Any) -> dict[str, Any]:
    return body({}, PortBindings={key.replace("_", "/"): value for key, value in bindings.items()})


def test_only_ports_by_number_are_wanted() -> None:
    create = published(
        p80_tcp=[{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": "8081"}],
        p81_udp=[{"HostPort": ""}, {"HostPort": "0"}, {"HostPort": "9000-9010"}],
        p82_tcp=None,
    )
    first, second = ports.published(create)
    assert (str(first), first.ip, first.protocol) == ("8080/tcp", "", "tcp")
    assert (str(second), second.ip) == ("8081/tcp", "127.0.0.1")
    assert ports.published(body({})) == ()


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_that_any_program_has_is_taken(kind: str) -> None:
    with socket.socket(type=ports.KINDS[kind]) as other:
        other.bind(("127.0.0.1", 0))
        if kind == "tcp":
            other.listen()
        number = str(other.getsockname()[1])
        create = published(**{f"80_{kind}": [{"HostIp": "127.0.0.1", "HostPort": number}]})
        [clash] = ports.clashing(ports.published(create))
        assert str(clash) == f"{number}/{kind}"
        [reason] = ports.reasons(create, "refuse", ())
        assert (reason.code, bool(reason.hint)) == (ErrorCode.PORT_TAKEN, True)
        assert list(ports.reasons(create, "remap", ())) == []
        fitted, [note] = ports.remapped(create, [clash])
        assert fitted["HostConfig"]["PortBindings"][f"80/{kind}"] == [{"HostIp": "127.0.0.1", "HostPort": ""}]
        assert number in note
    assert ports.clashing(ports.published(create)) == ()
    assert len(ports.clashing(ports.published(create), [clash])) == 1, "promised to another container"
    assert ports.remapped(create, ()) == (create, ())


def test_a_port_that_is_held_on_the_host_s_network_is_never_remapped() -> None:
    """One socket for IPv4 and one for IPv6 hold one port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        said = [Listening(protocol="tcp", address=address, port=number) for address in ("0.0.0.0", "::")]
        held = ports.listening(said)
        assert [(str(port), port.ip) for port in held] == [(f"{number}/tcp", "")]
        [reason] = ports.reasons(body(), "remap", (), held)
        assert (reason.code, bool(reason.hint)) == (ErrorCode.PORT_TAKEN, True)
    assert list(ports.reasons(body(), "remap", (), held)) == []
    assert [reason.code for reason in ports.reasons(body(), "remap", held, held)] == [ErrorCode.PORT_TAKEN]


def test_what_is_left_of_connections_holds_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        with socket.create_connection(place), server.accept()[0] as called:
            called.close()
    assert ports.clashing([ports.Port("80/tcp", *place)]) == ()


def test_an_address_that_the_host_has_not_is_said() -> None:
    create = published(p80_tcp=[{"HostIp": "203.0.113.7", "HostPort": "8080"}])
    [reason] = ports.reasons(create, "remap", ())
    assert "203.0.113.7" in reason.message
