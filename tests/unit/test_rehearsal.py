"""A rehearsal's copy: nobody takes it for the container, no network sees it, and nobody lets it run."""

from pathlib import Path
from typing import Any, cast

import pytest

from agent.base.errors import Refused
from agent.migration import thrown_away
from agent.migration.admission import Reserved
from agent.migration.machine import Role
from agent.migration.ports import Port
from agent.migration.rehearsal import check_can_be
from agent.migration.run import Run
from agent.migration.target import Target
from protocol.peer import Network, Offer
from protocol.status import Phase
from tests.unit import moves

CREATE: dict[str, Any] = {
    "Labels": {"com.docker.compose.project": "shop"},
    "ExposedPorts": {"80/tcp": {}},
    "HostConfig": {
        "NetworkMode": "front",
        "PortBindings": {"80/tcp": [{"HostPort": "80"}]},
        "PublishAllPorts": True,
        "Memory": 1 << 20,
        "Sysctls": {"net.ipv4.conf.eth0.rp_filter": "0", "net.core.somaxconn": "9"},
    },
    "NetworkingConfig": {"EndpointsConfig": {"front": {"IPAMConfig": {"IPv4Address": "10.1.0.2"}}}},
}


def offer(**changes: Any) -> Offer:
    network = Network(name="front", driver="macvlan", addresses=("10.1.0.2/24",))
    return moves.offer(create=CREATE, networks=(network,), rehearsal=True, **changes)


def test_the_copy_has_no_name_port_network_or_label_of_the_container() -> None:
    made = thrown_away.offer_of(offer())
    assert made.container == "web.rehearsal-0123456789abcdef"
    host = made.create["HostConfig"]
    assert (host["NetworkMode"], host["PortBindings"], host["PublishAllPorts"]) == ("none", {}, False)
    assert host["RestartPolicy"] == {"Name": "no"}
    assert made.create["NetworkingConfig"] == {"EndpointsConfig": {}}
    assert made.create["Labels"] == {thrown_away.LABEL: moves.ID}
    assert made.restart_policy == {"Name": "no"}


def test_it_is_else_as_the_container_would_be() -> None:
    made = thrown_away.offer_of(offer())
    assert made.create["HostConfig"]["Memory"] == 1 << 20
    assert made.create["HostConfig"]["Sysctls"] == {"net.core.somaxconn": "9"}
    assert [network.addresses for network in made.networks] == [("10.1.0.2/24",)], "sockets are bound to it, on lo"
    assert Offer.model_validate_json(made.model_dump_json()) == made


def test_only_room_is_promised_to_it() -> None:
    need = Reserved("web", 5, 7, frozenset({Port("80/tcp", "", 80)}), frozenset({("front", "10.1.0.2")}))
    assert thrown_away.promised(offer(), need) == Reserved("web.rehearsal-0123456789abcdef", 5, 7)


async def test_nobody_lets_it_run(tmp_path: Path) -> None:
    journal = moves.FakeJournal(tmp_path / "journal.sqlite")
    await journal.open()
    host = moves.host(moves.TARGET, moves.FakeDocker(), moves.FakeShell(), journal)
    run = Run(journal, moves.entry(Role.TARGET, Phase.PREPARED, {"pid": 1, "pid_start": 1}))
    target = Target(host, run, thrown_away.offer_of(offer()))
    with pytest.raises(Refused, match="the copy of a rehearsal: it never runs"):
        await target.go()
    assert run.phase is Phase.PREPARED
    thrown_away.check_may_run(moves.offer())
    await journal.close()


def test_one_on_the_hosts_network_is_not_rehearsed() -> None:
    with pytest.raises(Refused, match="on the host's network"):
        check_can_be(moves.offer(create={"HostConfig": {"NetworkMode": "host"}}))
    check_can_be(cast("Offer", offer()))
