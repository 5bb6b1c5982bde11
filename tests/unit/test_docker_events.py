"""Docker's lines of events, as recorded from both engines, become dataclasses."""

import json
from collections.abc import AsyncIterator

import pytest

from agent.doors import docker_events
from agent.doors.docker_events import DockerEvent

ID = "75f810d66b787b9e643f21116e309357c255fe93cf6055f918f80e29a4a2a905"
NET = "0026bacf05e40dc02fd48fee1277712b69a389cb512ad143b2c3c3bc7a3b943c"


def line(kind: str, action: str, actor: str, **attributes: str) -> bytes:
    return json.dumps(
        {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes},
            "scope": "local",
            "time": 1795491235,
            "timeNano": 1795491235539307699,
        }
    ).encode()


TABLE = [
    (line("container", "start", ID, image="busybox", name="t1"), "start", "", ID, "t1"),
    (line("container", "die", ID, exitCode="137", name="t1"), "die", "", ID, "t1"),
    (line("container", "health_status: healthy", ID, name="t1"), "health_status", "healthy", ID, "t1"),
    (line("container", "exec_start: sh -c echo a: b", ID, name="t1"), "exec_start", "sh -c echo a: b", ID, "t1"),
    (line("network", "connect", NET, container=ID, name="bridge", type="bridge"), "connect", "", ID, "bridge"),
    (line("volume", "mount", "named", container=ID, driver="local"), "mount", "", ID, ""),
    (line("daemon", "reload", "host", name="host-a"), "reload", "", "", "host-a"),
    (line("image", "delete", "sha256:abc", name="busybox"), "delete", "", "", "busybox"),
]


@pytest.mark.parametrize(("raw", "action", "detail", "container", "name"), TABLE)
def test_a_recorded_event_becomes_a_dataclass(raw: bytes, action: str, detail: str, container: str, name: str) -> None:
    event = docker_events.parse(raw)
    assert (event.action, event.detail, event.container_id, event.name) == (action, detail, container, name)
    assert event.time_nano == 1795491235539307699


def test_an_actor_without_attributes_is_an_event() -> None:
    raw = b'{"Type":"daemon","Action":"reload","Actor":{"ID":"x","Attributes":null},"timeNano":5}'
    assert docker_events.parse(raw) == DockerEvent("daemon", "reload", "", "x", "", {}, 5)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"Type":"container"}', b'{"Actor":null}', b'"text"', b"\xff"])
def test_garbage_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        docker_events.parse(raw)


@pytest.mark.parametrize(
    ("nano", "text"), [(1795491235539307699, "1795491235.539307699"), (1000000001, "1.000000001"), (0, "0.000000000")]
)
def test_since_keeps_every_nanosecond(nano: int, text: str) -> None:
    assert docker_events.since(nano) == text


async def test_lines_are_cut_at_newlines_wherever_the_chunks_end() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (b'{"a":1}\n{"b"', b":2}\n", b"\n", b"x" * 300_000, b"y\nlast"):
            yield chunk

    found = [text async for text in docker_events.lines(chunks())]
    assert found == [b'{"a":1}', b'{"b":2}', b"x" * 300_000 + b"y", b"last"]
