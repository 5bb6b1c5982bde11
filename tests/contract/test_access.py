"""The access list that is shipped, and TLS, at a real broker: who may say what, and what is said when they may not."""

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.base import config, pki
from agent.cli.controller import Controller
from agent.doors import mqtt_link
from agent.doors.mqtt_link import BrokerUnavailable, NotAllowed, connect
from protocol import topics
from protocol.commands import Ping
from tests.contract.conftest import Mosquitto
from tests.contract.stories import StoryHost, container

ACL = Path(__file__).parents[2] / "systemd/mosquitto.acl"
USERS = ("node-a", "node-b", "controller")
PATIENCE = 10.0
MIGRATION = "m-0123456789abcdef"


@pytest.fixture
def guarded(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Mosquitto:
    if not shutil.which("mosquitto_passwd"):
        pytest.skip("mosquitto_passwd is not installed")
    passwords, acl = tmp_path / "passwords", tmp_path / "acl"
    shutil.copy(ACL, acl)
    for at, user in enumerate(USERS):
        subprocess.run(
            ["mosquitto_passwd", "-b", *(["-c"] if not at else []), passwords, user, f"of-{user}"], check=True
        )
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)  # mosquitto reads them as its own user
    for file in (passwords, acl):
        file.chmod(0o644)
    return start_mosquitto(f"allow_anonymous false\npassword_file {passwords}\nacl_file {acl}\n")


def as_user(mosquitto: Mosquitto, user: str, password: str | None = None) -> config.Broker:
    return mosquitto.settings.model_copy(update={"username": user, "password": password or f"of-{user}"})


@asynccontextmanager
async def two_hosts(mosquitto: Mosquitto) -> AsyncIterator[tuple[StoryHost, StoryHost]]:
    node_a = StoryHost("node-a", as_user(mosquitto, "node-a"), [container("node-a", "web")])
    node_b = StoryHost("node-b", as_user(mosquitto, "node-b"))
    async with node_a.running(), node_b.running():
        yield node_a, node_b


async def test_all_that_is_needed_is_allowed(guarded: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    async with two_hosts(guarded) as (node_a, node_b), Controller(as_user(guarded, "controller")) as controller:
        heard = asyncio.Event()

        async def hear(status: object) -> None:
            heard.set()

        node_b.broker.on_host_status(hear)
        await asyncio.wait_for(heard.wait(), PATIENCE)
        node_a.broker.set_retained(topics.container_status("node-a", "+"), {})
        assert await node_a.broker.flush(PATIENCE)
        assert [one.host for one in await controller.hosts()] == ["node-a", "node-b"]
        assert await controller.containers() == []
        assert (await controller.ask("node-a", Ping(id="c-1"))).host == "node-a"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_decision_of_the_source_reaches_the_target(guarded: Mosquitto) -> None:
    async with two_hosts(guarded) as (_, node_b):
        waiting = asyncio.create_task(node_b.broker.await_decision(MIGRATION, "node-a"))
        decision = (
            f'{{"migration": "{MIGRATION}", "source": "node-a", "target": "node-b", "decision": "commit",'
            ' "at": "2025-01-01T12:00:00Z"}'
        )
        async with connect(as_user(guarded, "node-a"), "other") as link:
            await link.publish(topics.decision(MIGRATION, "node-a"), decision.encode(), retain=True)
        assert (await asyncio.wait_for(waiting, PATIENCE)).decision == "commit"


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("node-a", topics.host_status("node-b")),
        ("node-a", topics.container_status("node-b", "x")),
        ("node-a", topics.decision(MIGRATION, "node-b")),
        ("node-a", topics.migration_status(MIGRATION, "node-b")),
        ("node-a", topics.command("node-b")),
        ("node-a", topics.command("node-a")),
        ("controller", topics.host_status("node-a")),
        ("controller", topics.decision(MIGRATION, "node-a")),
    ],
)
async def test_nobody_speaks_for_another(guarded: Mosquitto, user: str, topic: str) -> None:
    async with connect(as_user(guarded, user), "x") as link:
        with pytest.raises(NotAllowed, match="does not allow publishing") as caught:
            await link.publish(topic, b"{}", retain=True)
    assert "mosquitto.acl" in caught.value.hint


async def test_agent_that_is_not_allowed_something_says_so_and_goes_on(
    guarded: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent is called node-b, its user at the broker node-a."""
    confused = StoryHost("node-b", as_user(guarded, "node-a"))
    async with confused.running():
        assert await confused.broker.flush(PATIENCE)
        assert confused.broker.connected
    assert f"does not allow publishing to {topics.host_status('node-b')}" in caplog.text


async def test_wrong_password_is_said_with_a_hint(guarded: Mosquitto) -> None:
    with pytest.raises(BrokerUnavailable, match="Not authorized") as caught:
        async with connect(as_user(guarded, "node-a", "wrong"), "x"):
            raise AssertionError
    assert "broker.password_file" in caught.value.hint


async def test_password_comes_from_its_file(guarded: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("of-controller\n")
    settings = guarded.settings.model_copy(update={"username": "controller", "password_file": tmp_path / "password"})
    async with Controller(settings) as controller:
        assert await controller.hosts() == []


@pytest.fixture
def encrypted(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Mosquitto:
    ca, ca_key = pki.make_ca("test", 1)
    certificate, key = pki.issue(ca, ca_key, "broker", ["localhost"], ["127.0.0.1"], 1)
    other, _ = pki.make_ca("another", 1)
    for name, content in {"ca.crt": ca, "broker.crt": certificate, "broker.key": key, "other.crt": other}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    return start_mosquitto(
        f"allow_anonymous true\ncafile {tmp_path}/ca.crt\n"
        f"certfile {tmp_path}/broker.crt\nkeyfile {tmp_path}/broker.key\n"
    )


async def test_agent_and_controller_speak_tls(encrypted: Mosquitto, tmp_path: Path) -> None:
    settings = encrypted.settings.model_copy(update={"tls": True, "ca": tmp_path / "ca.crt"})
    async with StoryHost("node-a", settings).running(), Controller(settings) as controller:
        assert (await controller.ask("node-a", Ping(id="c-1"))).host == "node-a"


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ({"tls": True, "ca": "other.crt"}, "CERTIFICATE_VERIFY_FAILED", "broker.ca must be the authority"),
        ({"tls": True, "ca": "gone.crt"}, "gone.crt is not there", "set broker.ca"),
        ({"tls": True, "ca": "broker.key"}, "", ""),
        ({"tls": False, "ca": None}, "", ""),
    ],
)
async def test_wrong_tls_settings_are_said(
    encrypted: Mosquitto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, object],
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr(mqtt_link, "ACK_SECONDS", 1.0)  # a broker that waits for TLS says nothing at all
    ca = tmp_path / str(said["ca"]) if said["ca"] else None
    settings = encrypted.settings.model_copy(update={**said, "ca": ca})
    with pytest.raises(BrokerUnavailable) as caught:
        async with connect(settings, "x"):
            raise AssertionError
    assert message in caught.value.message
    assert hint in caught.value.hint


async def test_tls_to_a_broker_without_is_said(mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(pki.make_ca("test", 1)[0])
    settings = mosquitto.settings.model_copy(update={"tls": True, "ca": tmp_path / "ca.crt"})
    with pytest.raises(BrokerUnavailable):
        async with connect(settings, "x"):
            raise AssertionError
