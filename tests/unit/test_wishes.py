"""What labels and stop signal of a container say about its end."""

import signal

import pytest

from agent.base.config import Shutdown
from agent.shutdown import wishes
from agent.shutdown.wishes import Wishes
from tests.unit.recorded import NAMES, container


def wished(stop_signal: str | None = None, defaults: Shutdown | None = None, **labels: str) -> Wishes:
    said = {f"transship.{key.replace('_', '-')}": to for key, to in labels.items()}
    found = container("docker28", NAMES[0], Config__Labels=said, Config__StopSignal=stop_signal)
    return wishes.read(found, defaults or Shutdown())


def test_without_a_label_the_settings_count() -> None:
    assert wished() == Wishes("ignore", "cold", signal.SIGTERM, 0)
    assert wished(defaults=Shutdown(default="hibernate", on_stale="down")).on_shutdown == "hibernate"


def test_labels_count_more() -> None:
    found = wished(on_shutdown="evacuate", on_stale="down", fallback_signal="SIGQUIT")
    assert found == Wishes("evacuate", "down", signal.SIGQUIT, 0)


def test_what_is_not_understood_is_as_if_it_were_not_there() -> None:
    assert wished(on_shutdown="sleep", on_stale="?", fallback_signal="LOUD") == wished()


@pytest.mark.parametrize("name", ["SIGURG", "URG", "23", "SIGCONT"])
def test_a_stop_signal_that_does_nothing_leaves_the_time_to_hibernate(name: str) -> None:
    assert wished(name).stop_signal in (signal.SIGURG, signal.SIGCONT)


@pytest.mark.parametrize("name", [None, "SIGTERM", "SIGQUIT", "RTMIN+3"])
def test_any_other_does_not(name: str | None) -> None:
    assert wished(name).stop_signal == 0
