"""The door before a pretended dockerd on a real UNIX socket: what is asked, printed, bounded, renamed, closed."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.base.errors import AgentError, DockerFailed, StepTimeout
from agent.doors.docker import Docker, unavailable
from protocol.errors import ErrorCode

ID = "75f810d66b787b9e643f21116e309357c255fe93cf6055f918f80e29a4a2a905"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dockerd:
    """Answers what a test tells it to, and remembers what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.url = f"unix://{socket}"
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.api = "1.45"
        self.gone = asyncio.Event()
        """A client has gone before it was answered."""
        self._handlers: dict[str, Handler] = {}
        self._socket = socket
        self._runner: web.AppRunner | None = None

    def on(self, what: str, answer: Handler | Any = None, status: int = 200) -> None:
        async def fixed(request: web.Request) -> web.Response:
            return web.json_response(answer, status=status) if answer is not None else web.Response(status=status)

        self._handlers[what] = answer if callable(answer) else fixed

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        # As dockerd does: a handler is cancelled when its client goes.
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._socket.unlink(missing_ok=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        self.asked.append(what + (f"?{request.query_string}" if request.query_string else ""))
        if what == "GET /version":
            return web.json_response({"ApiVersion": self.api, "Version": "x"})
        what = re.sub(r"/v1\.\d+", "", what)
        handler = self._handlers.get(what)
        if handler is None:
            return web.json_response({"message": f"no such thing: {what}"}, status=404)
        try:
            return await handler(request)
        except asyncio.CancelledError:
            self.gone.set()
            raise


@pytest.fixture
async def dockerd(tmp_path: Path) -> AsyncIterator[Dockerd]:
    found = Dockerd(tmp_path / "d.sock")
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def docker(dockerd: Dockerd) -> AsyncIterator[Docker]:
    async with Docker(dockerd.url, timeout=5) as door:
        yield door


def connections(door: Docker) -> int:
    assert door._opened is not None
    return len(door._opened[1]._acquired)


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


async def forever(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


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


# "Make sure that it is so"


async def test_what_is_gone_already_is_removed(dockerd: Dockerd, docker: Docker) -> None:
    await docker.remove("web")
    await docker.remove_image("web")
    await docker.remove_network("web")
    await docker.remove_volume("web")
    assert await docker.find("web") is None
    assert await docker.image("web") is None
    assert await docker.network("web") is None
    assert await docker.volume("web") is None
    assert not await docker.kill("web")
    assert "DELETE /v1.45/containers/web?force=1&v=0" in dockerd.asked


async def test_a_removal_under_way_is_waited_for(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("DELETE /containers/web", {"message": "removal of container web is already in progress"}, status=409)
    dockerd.on("POST /containers/web/wait", {"StatusCode": 0})
    await docker.remove("web")
    assert dockerd.asked[-1] == "POST /v1.45/containers/web/wait?condition=removed"


async def test_another_conflict_is_not_waited_for(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("DELETE /containers/web", {"message": "cannot remove container: it is running"}, status=409)
    with pytest.raises(DockerFailed, match="it is running"):
        await docker.remove("web", force=False)


async def test_a_kill_of_what_has_ended_is_no_error(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("POST /containers/web/kill", {"message": "container is not running"}, status=409)
    assert not await docker.kill("web", "SIGTERM")
    assert dockerd.asked[-1].endswith("kill?signal=SIGTERM")


async def test_stop_says_signal_and_seconds_where_they_are_given(dockerd: Dockerd, docker: Docker) -> None:
    dockerd.on("POST /containers/web/stop", status=304)
    await docker.stop("web")
    await docker.stop("web", signal="SIGINT", seconds=3)
    assert [text.partition("stop")[2] for text in dockerd.asked[1:]] == ["", "?signal=SIGINT&t=3"]


async def test_only_the_restart_policy_is_updated(dockerd: Dockerd, docker: Docker) -> None:
    bodies: list[Any] = []

    async def update(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"Warnings": None})

    dockerd.on("POST /containers/web/update", update)
    await docker.set_restart_policy("web", {"Name": "on-failure", "MaximumRetryCount": 3})
    assert bodies == [{"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}]


async def test_only_running_execs_are_told(dockerd: Dockerd, docker: Docker) -> None:
    raw = json.loads((Path(__file__).parent / "data" / "inspect-docker28.json").read_text())["containers"]["plain"]
    dockerd.on("GET /containers/plain/json", {**raw, "ExecIDs": ["a", "b", "c"]})
    process = {"entrypoint": "sh", "arguments": ["-c", "sleep 9"]}
    dockerd.on("GET /exec/a/json", {"ID": "a", "Running": True, "Pid": 42, "ProcessConfig": process})
    dockerd.on("GET /exec/b/json", {"ID": "b", "Running": False, "Pid": 0, "ProcessConfig": process})
    [found] = await docker.running_execs(await docker.inspect("plain"))
    assert (found.id, found.pid, found.command) == ("a", 42, "sh -c sleep 9")


async def test_a_name_with_odd_characters_stays_one_name(dockerd: Dockerd, docker: Docker) -> None:
    await docker.network("a b?c#d")
    await docker.image("registry:5000/team/app:1")
    assert dockerd.asked[1:] == ["GET /v1.45/networks/a b?c#d", "GET /v1.45/images/registry:5000/team/app:1/json"]


# Streams


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
