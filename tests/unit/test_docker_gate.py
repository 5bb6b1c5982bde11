"""The door before a pretended dockerd on a real UNIX socket: what is asked, printed, bounded, renamed, closed."""

import asyncio
import logging
import re
from pathlib import Path

import pytest
from aiohttp import web

from agent.base.errors import DockerFailed, StepTimeout
from agent.doors.docker import Docker, unavailable
from protocol.errors import ErrorCode
from tests.unit import pretended_dockerd
from tests.unit.pretended_dockerd import ID, Dockerd, connections, forever

dockerd = pytest.fixture(pretended_dockerd.dockerd)
docker = pytest.fixture(pretended_dockerd.docker)


# The version


@pytest.mark.parametrize(
    ("spoken", "chosen"), [("1.45", "v1.45"), ("1.51", "v1.51"), ("1.99", "v1.51"), ("2.0", "v1.51")]
)
async def test_the_newest_version_that_both_know_is_spoken(
    dockerd: Dockerd, docker: Docker, spoken: str, chosen: str
) -> None:
    dockerd.api = spoken
    dockerd.on("GET /containers/json", [])
    await docker.list()
    await docker.list()
    assert dockerd.asked == ["GET /version", *[f"GET /{chosen}/containers/json?all=1"] * 2]


async def test_an_engine_that_is_too_old_is_refused(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.api = "1.43"
    with pytest.raises(DockerFailed, match=r"API 1\.43 is too old") as failed:
        await docker.list()
    assert failed.value.hint


async def test_a_dockerd_that_comes_back_as_another_version_is_asked_again(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("GET /containers/json", [])
    await docker.list()
    await dockerd.stop()
    with pytest.raises(DockerFailed):
        await docker.list()
    dockerd.api = "1.51"
    await dockerd.start()
    await docker.list()
    assert dockerd.asked[-1] == "GET /v1.51/containers/json?all=1"


# The transcript


async def test_each_call_is_printed_before_and_after(
    dockerd: Dockerd, docker: Docker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agent.wire")
    dockerd.on(f"POST /containers/{ID}/start", status=204)
    await docker.start(ID)
    first, second = (record.getMessage() for record in caplog.records if record.name == "agent.wire")
    assert first == "> docker POST /containers/75f810d66b78/start"
    assert re.fullmatch(r"= 204 in 0\.\d{3} s \(POST /containers/75f810d66b78/start\)", second)


async def test_what_is_sent_is_not_printed(dockerd: Dockerd, docker: Docker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agent.wire")
    dockerd.on("POST /containers/create", {"Id": ID})
    assert await docker.create("web", {"Env": ["PASSWORD=secret"]}) == ID
    assert "secret" not in caplog.text
    assert "> docker POST /containers/create?name=web" in caplog.text


async def test_a_failure_is_printed_with_its_status(
    dockerd: Dockerd, docker: Docker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agent.wire")
    with pytest.raises(DockerFailed):
        await docker.inspect("nothing")
    assert "= 404 in 0." in caplog.text


# Errors


async def test_an_error_carries_dockers_own_sentence_and_status(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("POST /containers/create", {"message": 'Conflict. The name "/web" is in use.\n'}, status=409)
    with pytest.raises(DockerFailed) as failed:
        await docker.create("web", {})
    assert (failed.value.message, failed.value.http_status) == ('Conflict. The name "/web" is in use.', 409)
    assert unavailable(failed.value) is None


async def test_an_error_that_is_no_json_is_an_error(dockerd: Dockerd, docker: Docker) -> None:
    async def plain(request: web.Request) -> web.Response:
        return web.Response(status=500, text="page not found")

    dockerd.on("GET /containers/web/json", plain)
    with pytest.raises(DockerFailed, match="page not found"):
        await docker.inspect("web")


async def test_no_dockerd_at_all_is_told_apart(tmp_path: Path) -> None:
    async with Docker(f"unix://{tmp_path}/none.sock", timeout=5) as docker:
        with pytest.raises(DockerFailed, match="can't be reached at unix://") as failed:
            await docker.list()
    refusal = unavailable(failed.value)
    assert failed.value.http_status == 0
    assert refusal is not None
    assert (refusal.code, refusal.message) == (ErrorCode.DOCKER_UNAVAILABLE, failed.value.message)
    assert unavailable(ValueError("another")) is None


async def test_a_connection_that_breaks_is_no_answer(dockerd: Dockerd, docker: Docker) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    dockerd.on("GET /info", breaks)
    with pytest.raises(DockerFailed) as failed:
        await docker.data_root()
    assert failed.value.http_status == 0


@pytest.mark.parametrize("answer", ["text", [], {"Id": None}, {"State": {}}])
async def test_an_answer_of_another_shape_is_an_error_that_says_so(
    dockerd: Dockerd, docker: Docker, answer: object
) -> None:
    dockerd.on("GET /containers/web/json", answer)
    with pytest.raises(DockerFailed, match="is not understood"):
        await docker.inspect("web")


# Deadlines and cancels


async def test_a_call_is_bounded(dockerd: Dockerd) -> None:
    dockerd.on("GET /info", forever)
    async with Docker(dockerd.url, timeout=0.2) as docker:
        with pytest.raises(StepTimeout, match=r"did not answer GET /info within 0\.2 s"):
            await docker.data_root()
        await asyncio.wait_for(dockerd.gone.wait(), 5)
        assert connections(docker) == 0


async def test_start_has_no_deadline_and_a_cancel_closes_its_connection(dockerd: Dockerd) -> None:
    dockerd.on("POST /containers/web/start", forever)
    async with Docker(dockerd.url, timeout=0.1) as docker:
        starting = asyncio.create_task(docker.start("web"))
        while not dockerd.asked or not dockerd.asked[-1].endswith("/start"):
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait({starting}, timeout=0.4)
        assert not done
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(dockerd.gone.wait(), 5)
        assert connections(docker) == 0


async def test_closing_twice_and_without_use_is_fine(dockerd: Dockerd) -> None:
    docker = Docker(dockerd.url, timeout=5)
    await docker.close()
    dockerd.on("GET /containers/json", [])
    await docker.list()
    await docker.close()
    await docker.close()
