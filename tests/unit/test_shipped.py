"""The files that are shipped fit the program."""

from pathlib import Path

from agent.base import config
from agent.cli import setup

ROOT = Path(__file__).parents[2]


def test_example_settings_can_be_loaded_as_they_are_and_with_every_line_in_force(tmp_path: Path) -> None:
    text = setup.shipped(setup.EXAMPLE)
    (tmp_path / "a.toml").write_text(text)
    settings = config.load(tmp_path / "a.toml")
    assert settings.peer.allow == ()
    lines = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()]
    (tmp_path / "b.toml").write_text("\n".join(lines))
    full = config.load(tmp_path / "b.toml")
    assert full.host == "node-a"
    assert full.limits == settings.limits, "a default in the example is not that of the program"
    assert full.deadlines == settings.deadlines
    assert full.shutdown == settings.shutdown
    for name in type(full.deadlines).model_fields:
        assert f"#{name} = " in text, f"deadlines.{name} is not in the example"


def test_service_lets_a_dump_end() -> None:
    text = setup.shipped(setup.UNIT)
    [stop] = [int(line.partition("=")[2]) for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    assert stop > config.Deadlines().dump
    assert "KillMode=process" in text
    assert "Type=notify" in text


FILTERS = (
    *("SystemCall", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
    *("LockPersonality", "MemoryDenyWriteExecute", "ProtectClock", "ProtectHostname", "ProtectKernel"),
)
MOUNTS = ("ProtectSystem", "ProtectHome", "ProtectProc", "ProtectControlGroups", "PrivateTmp", "PrivateDevices")


def test_service_is_confined_and_has_no_filter_with_which_criu_could_not_dump() -> None:
    """docs/decisions/0014; nor a mount namespace in which dockerd's runtime would not see the images."""
    lines = setup.shipped(setup.UNIT).splitlines()
    assert [line for line in lines if line.startswith((*FILTERS, *MOUNTS))] == []
    assert any(line.startswith("CapabilityBoundingSet=~") for line in lines)
    page = (ROOT / "docs/security.md").read_text()
    assert [name for name in (*FILTERS, *MOUNTS) if f"`{name}" not in page] == [], "each has its reason in the docs"


def test_access_list_holds_every_topic_of_an_agent() -> None:
    text = (ROOT / "systemd/mosquitto.acl").read_text()
    for line in (
        "pattern read transship/v1/hosts/%u/command",
        "pattern write transship/v1/hosts/%u/status",
        "pattern write transship/v1/hosts/%u/containers/+",
        "pattern write transship/v1/hosts/%u/events",
        "pattern write transship/v1/migrations/+/%u/status",
        "pattern write transship/v1/migrations/+/%u/decision",
        "pattern read transship/v1/migrations/+/+/decision",
        "pattern write transship/v1/replies/#",
    ):
        assert f"\n{line}\n" in text
