"""Answers of dockerd that flow: images and events come as they are, without a deadline, and end loudly."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from agent.base.errors import AgentError, DockerFailed, StepTimeout
from agent.doors.docker import Docker, unavailable
from tests.unit import pretended_dockerd
from tests.unit.pretended_dockerd import ID, Dockerd, connections, forever

dockerd = pytest.fixture(pretended_dockerd.dockerd)
docker = pytest.fixture(pretended_dockerd.docker)


# Images


async def test_an_image_is_saved_no_faster_than_it_is_taken(dockerd: Dockerd, docker: Docker) -> None:
    sent = 0

    async def save(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(256):
            await response.write(b"x" * 65536)
            sent += 65536
        return response

    dockerd.on("GET /images/app/get", save)
    chunks = docker.save_image("app")
    taken = len(await anext(chunks))
    await asyncio.sleep(0.3)
    assert sent < 4 << 20  # of 16 MiB
    async for chunk in chunks:
        taken += len(chunk)
    assert taken == 16 << 20
    assert connections(docker) == 0


async def test_a_saved_image_that_is_not_wanted_any_more_closes_its_connection(
    dockerd: Dockerd, docker: Docker
) -> None:
    async def save(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    dockerd.on("GET /images/app/get", save)
    chunks = docker.save_image("app")
    await anext(chunks)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert connections(docker) == 0


async def loads(dockerd: Dockerd, *said: dict[str, Any]) -> None:
    async def load(request: web.Request) -> web.Response:
        dockerd.bodies.append(await request.read())
        return web.Response(body=b"".join(json.dumps(line).encode() + b"\r\n" for line in said))

    dockerd.on("POST /images/load", load)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_an_image_is_loaded_as_it_comes(dockerd: Dockerd, docker: Docker) -> None:
    await loads(
        dockerd, {"stream": "Loaded image: app:1\n"}, {"stream": "Loaded image ID: sha256:ab\n"}, {"status": "x"}
    )
    assert await docker.load_image(pieces(b"one", b"two")) == ("app:1", "sha256:ab")
    assert dockerd.bodies == [b"onetwo"]


async def test_an_error_in_the_middle_of_the_answer_is_an_error(dockerd: Dockerd, docker: Docker) -> None:
    await loads(dockerd, {"errorDetail": {"message": "no space left"}, "error": "no space left"})
    with pytest.raises(DockerFailed, match="no space left") as failed:
        await docker.load_image(pieces(b"one"))
    assert failed.value.http_status == 200


async def test_a_source_that_breaks_is_what_is_raised_and_dockerd_sees_no_end(dockerd: Dockerd, docker: Docker) -> None:
    await loads(dockerd)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise AgentError("the peer went away")

    with pytest.raises(AgentError, match="the peer went away"):
        await docker.load_image(broken())
    assert dockerd.bodies == []
    assert connections(docker) == 0


# Events


async def test_events_come_as_they_are_and_their_end_is_loud(
    dockerd: Dockerd, docker: Docker, caplog: pytest.LogCaptureFixture
) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        event = {
            "Type": "container",
            "Action": "die",
            "Actor": {"ID": ID, "Attributes": {"name": "web"}},
            "timeNano": 7,
        }
        for line in (json.dumps(event), "garbage", json.dumps({**event, "Action": "destroy"})):
            await response.write(line.encode() + b"\n")
        return response

    dockerd.on("GET /events", events)
    async with docker.events(1_000_000_007) as stream:
        assert [(await anext(stream)).action, (await anext(stream)).action] == ["die", "destroy"]
        with pytest.raises(DockerFailed, match="stream of events ended") as failed:
            await anext(stream)
    assert unavailable(failed.value) is not None
    assert "skipped an event" in caplog.text
    assert dockerd.asked[-1] == "GET /v1.45/events?since=1.000000007"


async def test_a_quiet_stream_of_events_has_no_deadline(dockerd: Dockerd) -> None:
    release = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await release.wait()
        await response.write(b'{"Type":"daemon","Action":"reload","Actor":{"ID":"x"},"timeNano":7}\n')
        return response

    dockerd.on("GET /events", events)
    async with Docker(dockerd.url, timeout=0.2) as docker, docker.events() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.wait({waiting}, timeout=0.5)
        assert not waiting.done()
        release.set()
        assert (await waiting).action == "reload"


async def test_a_dockerd_that_hangs_before_the_first_byte_is_not_waited_for(dockerd: Dockerd) -> None:
    dockerd.on("GET /events", forever)
    async with Docker(dockerd.url, timeout=0.2) as docker:
        with pytest.raises(StepTimeout):
            async with docker.events():
                raise AssertionError


async def test_what_is_raised_while_following_is_not_renamed(dockerd: Dockerd, docker: Docker) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    dockerd.on("GET /events", events)
    with pytest.raises(KeyError):
        async with docker.events():
            raise KeyError("a bug of a handler")
    assert connections(docker) == 0
