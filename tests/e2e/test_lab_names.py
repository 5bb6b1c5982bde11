"""What a lab is asked for in words is read, or refused, before anything is made."""

import pytest

from lab import Engine, HostSpec, Lab, LabError
from lab.service import merge, to_toml
from tests.e2e.lab_support import HOSTS


def test_the_configuration_is_laid_over_table_by_table() -> None:
    merged = merge({"host": "a", "peer": {"port": 1, "allow": ["b"]}}, {"peer": {"port": 2}, "log_json": True})
    assert merged == {"host": "a", "peer": {"port": 2, "allow": ["b"]}, "log_json": True}
    text = 'host = "a"\nlog_json = true\n[peer]\nport = 2\nallow = ["b"]\n'
    assert to_toml(merged) == text


def test_bad_names_are_refused_before_anything_is_made() -> None:
    for name, hosts in (("Bad-Name", HOSTS), ("fine", [HostSpec("broker")]), ("fine", [HOSTS[0], HOSTS[0]])):
        with pytest.raises(LabError):
            Lab.up(name, hosts)
    with pytest.raises(LabError, match="there is no lab fine"):
        Lab.load("fine")


def test_a_host_is_described_in_a_word() -> None:
    spec = HostSpec.parse("a=docker26,userns,cgroup2")
    assert spec == HostSpec("a", Engine.DOCKER26, userns_remap=True, cgroup2=True)
    assert HostSpec.parse("b") == HostSpec("b", Engine.DOCKER28)
    for text in ("a=docker99", "a=docker26,nonsense"):
        with pytest.raises(LabError, match="engines are docker26, docker28, options are userns"):
            HostSpec.parse(text)
