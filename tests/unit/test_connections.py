"""What becomes of connections: by command, by label, by where the address is."""

from types import SimpleNamespace

import pytest

from agent.base.errors import Refused
from agent.migration.connections import LABEL, policy
from protocol.commands import TcpPolicy

AUTO, KEEP, CLOSE, REFUSE = TcpPolicy.AUTO, TcpPolicy.KEEP, TcpPolicy.CLOSE, TcpPolicy.REFUSE


def decided(wanted: TcpPolicy, label: str = "", *, connections: int = 1, moves_along: bool = True) -> TcpPolicy:
    container = SimpleNamespace(name="web", labels={LABEL: label} if label else {})
    return policy(container, wanted, connections, address_moves_along=moves_along)


def test_without_a_wish_the_address_decides() -> None:
    assert decided(AUTO) is KEEP
    assert decided(AUTO, moves_along=False) is CLOSE
    assert decided(AUTO, "auto") is KEEP
    assert decided(REFUSE, connections=0) is KEEP
    assert decided(REFUSE, connections=0, moves_along=False) is CLOSE


def test_a_label_speaks_where_the_command_does_not() -> None:
    assert decided(AUTO, "close") is CLOSE
    assert decided(KEEP, "close") is KEEP
    assert decided(CLOSE, "keep", moves_along=False) is CLOSE
    assert decided(CLOSE, "refuse") is CLOSE


@pytest.mark.parametrize(("wanted", "label"), [(REFUSE, ""), (AUTO, "refuse"), (REFUSE, "close")])
def test_refuse_counts_the_connections(wanted: TcpPolicy, label: str) -> None:
    with pytest.raises(Refused, match="web has 2 TCP connections"):
        decided(wanted, label, connections=2)


@pytest.mark.parametrize(("wanted", "label"), [(KEEP, ""), (AUTO, "keep")])
def test_what_stays_behind_cannot_be_kept(wanted: TcpPolicy, label: str) -> None:
    with pytest.raises(Refused, match="does not move along"):
        decided(wanted, label, moves_along=False)


def test_a_label_that_is_none_is_refused_unless_the_command_says_it() -> None:
    with pytest.raises(Refused, match=r"label transship\.tcp=kept, which is none of auto, keep, close, refuse"):
        decided(AUTO, "kept")
    assert decided(CLOSE, "kept") is CLOSE
