"""The table of fields knows all that Docker shows, and the page tells it."""

import copy
from pathlib import Path
from typing import Any

import pytest

from agent.migration import fields
from agent.migration.fields import KNOWN_FIELDS, Fate
from tests.unit import recorded
from tests.unit.recorded import ENGINES, NAMES, SAID, container

engine = pytest.fixture(params=ENGINES)(recorded.engine)

PAGE = Path(__file__).parents[2] / "docs/fidelity.md"


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
